//! Shell completions and man pages, made of the command line itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

/// Print the completions of a shell
///
/// A shell takes them by `source`, or from the folder that it has for them.
#[derive(Debug, Args)]
pub struct Completions {
    #[arg(value_enum)]
    shell: Shell,
    /// The name that the program is called by
    #[arg(long)]
    name: Option<String>,
}

/// Write man pages, one for each command
#[derive(Debug, Args)]
pub struct ManPages {
    /// The folder that they are written into
    folder: PathBuf,
    /// The name that the program is called by
    #[arg(long)]
    name: Option<String>,
}

impl Completions {
    #[must_use]
    pub fn of(&self, command: Command) -> String {
        let (mut command, name) = named(command, self.name.as_deref());
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}

impl ManPages {
    pub fn write(&self, command: Command) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let (command, name) = named(command, self.name.as_deref());
        page(&command.disable_help_subcommand(true), &name, &self.folder)
    }
}

fn named(command: Command, name: Option<&str>) -> (Command, String) {
    let name = name.unwrap_or(command.get_name()).to_owned();
    (command.name(name.clone()), name)
}

fn page(command: &Command, name: &str, folder: &Path) -> io::Result<()> {
    let title = name.replace(' ', "-");
    let mut text = Vec::new();
    let named = command.clone().name(title.clone()).bin_name(name);
    clap_mangen::Man::new(named).render(&mut text)?;
    fs::write(folder.join(format!("{title}.1")), text)?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        page(below, &format!("{name} {}", below.get_name()), folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        let migrate = Command::new("migrate").about("Bring the schema to this version");
        Command::new("worker").subcommand(Command::new("keys").subcommand(migrate))
    }

    fn parsed<T: Args>(words: &[&str]) -> T {
        let matches = T::augment_args(Command::new("x")).get_matches_from(words);
        T::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn completions_are_of_the_name_that_is_called() {
        let script = parsed::<Completions>(&["x", "bash", "--name", "mooring"]).of(program());
        assert!(script.contains("mooring__subcmd__keys") && !script.contains("worker"), "{script}");
        assert!(script.contains("-F _mooring"), "{script}");
    }

    #[test]
    fn each_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("man1");
        let words = ["x", to.to_str().unwrap(), "--name", "mooring"];
        parsed::<ManPages>(&words).write(program()).unwrap();
        let names = |folder: &Path| -> Vec<String> {
            let files = fs::read_dir(folder).unwrap();
            let mut names: Vec<String> = files
                .map(|file| file.unwrap().file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&to), ["mooring-keys-migrate.1", "mooring-keys.1", "mooring.1"]);
        let page = fs::read_to_string(to.join("mooring-keys-migrate.1")).unwrap();
        assert!(
            page.contains("Bring the schema") && page.contains("mooring keys migrate"),
            "{page}"
        );
    }
}
