//! Where a secret of the configuration is found. The configuration file never
//! holds one itself.

use std::fmt;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A command that is slower than this has failed.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Where systemd puts the credentials of a unit.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
const COMMAND_POLL: Duration = Duration::from_millis(5);
/// A secret is no longer than this.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

/// `{ env = "NAME" }`, `{ file = "/path" }`, `{ credential = "name" }` or
/// `{ command = ["program", "argument"] }`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum SecretRef {
    /// The environment variable that holds the secret.
    Env(String),
    /// The file that holds the secret. A newline at its end is not part of it.
    File(PathBuf),
    /// The name of a credential that systemd gives the unit, as `LoadCredential=` says. A newline at
    /// its end is not part of the secret. See <https://systemd.io/CREDENTIALS/>.
    Credential(String),
    /// A program with its arguments that prints the secret, within 10 s. No shell reads it, so
    /// nothing in it is expanded. A newline at the end is not part of the secret.
    Command(#[schemars(length(min = 1))] Vec<String>),
}

#[derive(Debug, thiserror::Error)]
pub enum SecretRefError {
    #[error("the environment variable {0} is not set (or is not UTF-8)")]
    Env(String),
    #[error("the file {path} cannot be read: {why}")]
    File { path: PathBuf, why: std::io::Error },
    #[error(
        "the credential {0} cannot be had, because CREDENTIALS_DIRECTORY is not set: systemd sets \
         it for a unit that has LoadCredential="
    )]
    NoCredentials(String),
    #[error("{command} {why}; run it by hand to see what it says")]
    Command { command: String, why: String },
    #[error("{0} is empty")]
    Empty(String),
}

impl SecretRef {
    /// Reads the secret. A newline at the end is not part of it.
    pub fn read(
        &self,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<SecretString, SecretRefError> {
        let text = match self {
            Self::Env(name) => env(name).ok_or_else(|| SecretRefError::Env(name.clone()))?,
            Self::File(path) => text_of(path.clone())?,
            Self::Credential(name) => {
                let folder = env(CREDENTIALS_DIRECTORY);
                let folder = folder.ok_or_else(|| SecretRefError::NoCredentials(name.clone()))?;
                text_of(PathBuf::from(folder).join(name))?
            }
            Self::Command(command) => output_of(command, COMMAND_TIMEOUT)
                .map_err(|why| SecretRefError::Command { command: self.to_string(), why })?,
        };
        let text = Zeroizing::new(text);
        let text = SecretString::from(text.trim_end_matches(['\r', '\n']));
        if secrecy::ExposeSecret::expose_secret(&text).is_empty() {
            return Err(SecretRefError::Empty(self.to_string()));
        }
        Ok(text)
    }
}

fn text_of(path: PathBuf) -> Result<String, SecretRefError> {
    std::fs::read_to_string(&path).map_err(|why| SecretRefError::File { path, why })
}

/// systemd takes no other name of a credential.
fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// What a command prints. Neither that nor what it says on standard error is part
/// of an error, because it may be the secret.
fn output_of(command: &[String], timeout: Duration) -> Result<String, String> {
    let Some((program, arguments)) = command.split_first() else {
        return Err("names no program".to_owned());
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|why| format!("cannot be run: {why}"))?;
    let Some(stdout) = child.stdout.take() else { return Err("has no output".to_owned()) };
    let (sender, printed) = mpsc::channel();
    // It ends with the output, which a process that the command left behind may keep open.
    thread::spawn(move || {
        let mut bytes = Zeroizing::new(Vec::new());
        let read = stdout.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut bytes);
        sender.send(read.map(|_| bytes)).ok();
    });
    let (started, printed) = (Instant::now(), printed.recv_timeout(timeout));
    let status = ended(&mut child, started, timeout);
    let bytes = match printed {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(why)) => return Err(format!("cannot be read: {why}")),
        Err(_) => return Err(format!("has not ended within {} s", timeout.as_secs())),
    };
    if bytes.len() as u64 > OUTPUT_BYTES_MAX {
        return Err("prints more than a secret".to_owned());
    }
    match status.map_err(|why| format!("cannot be waited for: {why}"))? {
        Some(status) if status.success() => {}
        Some(status) => return Err(format!("has failed ({status})")),
        None => return Err(format!("has not ended within {} s", timeout.as_secs())),
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| "prints what is not UTF-8".to_owned())?;
    Ok(text.to_owned())
}

/// `None` if it had to be ended. What prints too much, or nothing in time, does not
/// end by itself.
fn ended(
    child: &mut Child,
    started: Instant,
    timeout: Duration,
) -> std::io::Result<Option<ExitStatus>> {
    while started.elapsed() < timeout {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::park_timeout(COMMAND_POLL);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "the environment variable {name}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Credential(name) => write!(f, "the credential {name}"),
            // Its arguments may be anything.
            Self::Command(command) => {
                let program = command.first().map(String::as_str).unwrap_or_default();
                write!(f, "the command {program}")
            }
        }
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "a secret must not stand in the configuration: refer to it by \
                                { env = \"NAME\" }, { file = \"/path\" }, { credential = \
                                \"name\" } or { command = [\"program\", \"argument\"] }";
        // A derived implementation would show what it found instead, which may be the secret.
        let Value::Object(found) = Value::deserialize(deserializer)? else {
            return Err(D::Error::custom(EXPECTED));
        };
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some((key, Value::String(name))), None) if key == "env" => Ok(Self::Env(name)),
            (Some((key, Value::String(path))), None) if key == "file" => {
                Ok(Self::File(path.into()))
            }
            (Some((key, Value::String(name))), None) if key == "credential" => {
                let name = Some(name).filter(|name| is_file_name(name));
                name.map(Self::Credential).ok_or_else(|| D::Error::custom(EXPECTED))
            }
            (Some((key, Value::Array(words))), None) if key == "command" => {
                let word = |word: Value| word.as_str().map(str::to_owned);
                let words: Option<Vec<String>> = words.into_iter().map(word).collect();
                let words = words.filter(|words| words.first().is_some_and(|it| !it.is_empty()));
                words.map(Self::Command).ok_or_else(|| D::Error::custom(EXPECTED))
            }
            _ => Err(D::Error::custom(EXPECTED)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &[&str]) -> Vec<String> {
        command.iter().map(ToString::to_string).collect()
    }

    fn secret(command: &[&str]) -> Result<String, String> {
        let reference = SecretRef::Command(words(command));
        let read = reference.read(&|_| None);
        let exposed = |text: SecretString| secrecy::ExposeSecret::expose_secret(&text).to_owned();
        read.map(exposed).map_err(|why| why.to_string())
    }

    #[test]
    fn a_command_prints_a_secret_and_no_shell_reads_it() {
        assert_eq!(secret(&["printf", "%s\n", "$HOME;`id`"]), Ok("$HOME;`id`".to_owned()));
    }

    #[test]
    fn a_command_that_fails_is_named_without_what_it_says() {
        let failed = secret(&["sh", "-c", "echo the-secret; echo the-secret >&2; exit 3"]);
        let failed = failed.unwrap_err();
        assert!(failed.contains("the command sh has failed"), "{failed}");
        assert!(!failed.contains("the-secret"), "{failed}");
        assert!(secret(&["/no/such/program"]).unwrap_err().contains("cannot be run"));
        assert!(secret(&["true"]).unwrap_err().contains("is empty"));
        let endless = secret(&["yes"]).unwrap_err();
        assert!(endless.contains("prints more than a secret"), "{endless}");
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let (started, timeout) = (Instant::now(), Duration::from_millis(200));
        let hangs = output_of(&words(&["sleep", "60"]), timeout).unwrap_err();
        assert!(hangs.contains("has not ended"), "{hangs}");
        let closes = output_of(&words(&["sh", "-c", "exec >&-; exec sleep 60"]), timeout);
        assert!(closes.is_err() && started.elapsed() < Duration::from_secs(30), "{closes:?}");
    }

    #[test]
    fn a_credential_is_a_file_in_the_folder_that_systemd_names() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("nats-password"), "the-password\n").unwrap();
        let env = |name: &str| {
            (name == "CREDENTIALS_DIRECTORY").then(|| folder.path().to_string_lossy().into_owned())
        };
        let reference = |name: &str| SecretRef::Credential(name.to_owned());
        let read = reference("nats-password").read(&env).unwrap();
        assert_eq!(secrecy::ExposeSecret::expose_secret(&read), "the-password");
        let why = reference("another").read(&env).unwrap_err().to_string();
        assert!(why.contains("another cannot be read"), "{why}");
        let why = reference("nats-password").read(&|_| None).unwrap_err().to_string();
        assert!(why.contains("LoadCredential"), "{why}");
        for name in ["", ".", "..", "../x", "/x"] {
            let json = serde_json::json!({ "credential": name });
            assert!(serde_json::from_value::<SecretRef>(json).is_err(), "{name}");
        }
    }

    #[test]
    fn a_reference_is_written_in_one_of_four_ways() {
        let read = |json: &str| serde_json::from_str::<SecretRef>(json);
        let command = SecretRef::Command(words(&["vault", "read"]));
        assert_eq!(read(r#"{"command":["vault","read"]}"#).unwrap(), command);
        for refused in [
            r#"{"command":[]}"#,
            r#"{"command":[""]}"#,
            r#"{"command":"vault read"}"#,
            r#"{"command":["vault",1]}"#,
            r#"{"command":["vault"],"file":"x"}"#,
        ] {
            let why = read(refused).unwrap_err().to_string();
            assert!(why.contains("must not stand") && !why.contains("vault"), "{why}");
        }
    }
}
