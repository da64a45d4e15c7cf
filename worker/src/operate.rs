//! The command line. A command is a file here, which holds its arguments, its
//! work and its printing, and a line in `commands!` below.
//!
//! What commands share exists once: [`context`] runs each of them and ends it
//! after Ctrl-C or SIGTERM, [`backends`] connects, [`output`] prints, [`consent`]
//! asks before something is destroyed, [`exit`] knows the exit codes.

mod archive;
mod audit;
mod backends;
mod callbacks;
mod completions;
mod consent;
mod context;
mod dead_letters;
mod doctor;
mod erase;
mod erase_again;
mod exit;
mod explain;
mod feed;
mod indexing;
mod installations;
mod keys;
mod man;
mod migrate;
mod output;
mod progress;
mod push;
mod rebuild;
mod replay;
mod restore;
mod run;
mod sealed_secrets;
mod tokens;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::settings::Env;

/// Applies the log of installation events to Postgres and serves the result
#[derive(Parser)]
#[command(
    version = service::build::version(),
    after_help = "Exit codes: 0 done or stopped as asked, 1 failed, 2 wrong arguments, 3 something \
                  differs,\n78 the configuration cannot be used, 130 interrupted.\n\n\
                  Examples:\n  \
                  worker migrate                        bring schema, streams and consumer to this version\n  \
                  worker run                            apply events, serve reads\n  \
                  worker installations list --status active\n  \
                  worker installations show instapp_1 --json"
)]
pub struct Cli {
    /// The configuration file; MOORING__SECTION__SETTING variables override it
    #[arg(
        long,
        env = "MOORING_CONFIG",
        hide_env_values = true,
        default_value = "mooring.toml",
        global = true
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Runs the command to its end, which the exit code tells.
    pub fn execute(self, env: Env) -> ExitCode {
        exit::code(self.command.execute(self.config, env))
    }
}

/// An enum of the commands, in the order of the help. Each names its module.
macro_rules! commands {
    ($($command:ident($module:ident),)+) => {
        #[derive(Subcommand)]
        enum Command {
            $($command($module::Arguments)),+
        }

        impl Command {
            fn execute(self, config: PathBuf, env: Env) -> anyhow::Result<()> {
                match self {
                    $(Self::$command(arguments) => context::execute(arguments, config, env)),+
                }
            }
        }
    };
}

commands! {
    Run(run),
    Migrate(migrate),
    Doctor(doctor),
    Installations(installations),
    Explain(explain),
    Feed(feed),
    Push(push),
    Callbacks(callbacks),
    Replay(replay),
    Verify(verify),
    Rebuild(rebuild),
    Restore(restore),
    DeadLetters(dead_letters),
    Archive(archive),
    Keys(keys),
    Erase(erase),
    EraseAgain(erase_again),
    Tokens(tokens),
    Audit(audit),
    Completions(completions),
    Man(man),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Compares what a command prints with `snapshots/<name>.snap`. To accept a
    /// change, run the tests with `INSTA_UPDATE=always` and look at the diff.
    pub(crate) fn assert_view(name: &str, text: &str) {
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/src/operate/snapshots"),
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, {
            insta::assert_snapshot!(name, text);
        });
    }

    /// The help of a command and of those below it.
    fn check_help(command: clap::Command, path: &str) {
        let name = format!("help-{}", path.replace(' ', "-"));
        let help = command.clone().bin_name(path).term_width(100).render_long_help().to_string();
        assert_view(&name, &help);
        for below in command.get_subcommands() {
            check_help(below.clone(), &format!("{path} {}", below.get_name()));
        }
    }

    #[test]
    fn each_command_explains_itself() {
        let cli = Cli::command();
        cli.clone().debug_assert();
        check_help(cli, "worker");
    }
}
