//! The chart in `deploy/helm`, rendered by Helm's own engine. No cluster is needed.

use std::process::Command;

use crate::clients::{passed, python_environment};

#[test]
fn what_the_chart_renders_is_valid_hardened_and_accepted_by_the_programs() {
    let folder = dev::workspace_root().join("deploy/helm");
    let Some(environment) = python_environment("helm", &folder.join("tests")) else { return };
    let python = |args: &[&str]| {
        let mut python = Command::new(environment.join("bin/python"));
        python.args(args).arg(folder.join("tests")).env("PYTHONDONTWRITEBYTECODE", "1");
        python
    };
    passed(&mut python(&["-m", "mypy", "--strict", "--cache-dir=/dev/null"]));
    let mut tests = python(&["-m", "pytest", "-p", "no:cacheprovider", "-rs"]);
    for name in ["ingest", "worker"] {
        let program = dev::services::binary(name).unwrap();
        tests.env(format!("MOORING_{}", name.to_uppercase()), program);
    }
    let printed = passed(&mut tests);
    assert!(printed.contains(" passed") && !printed.contains("skipped"), "{printed}");
}
