//! `worker installations`: what the projection says. It needs no more than the
//! worker's own role in Postgres.

use clap::builder::PossibleValuesParser;
use clap::value_parser;
use clap::{Args, Subcommand};
use domain::fold::Status;
use domain::id::{InstallationId, SourceName};

use crate::operate::context::{self, Context};
use crate::operate::exit::WrongArguments;
use crate::operate::output::{self, Format};
use crate::store::find::{self, Filter, FindError, PAGE_MAX, Page, Which};
use crate::store::reach::Reach;

/// Read installations from Postgres
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List installations, one per line
    List {
        #[command(flatten)]
        filter: FilterArguments,
        #[command(flatten)]
        format: Format,
    },
    /// Show one installation
    Show {
        /// The platform's id of the installation
        #[arg(value_parser = |text: &str| InstallationId::parse(text))]
        id: InstallationId,
        #[command(flatten)]
        which: WhichArguments,
        #[command(flatten)]
        format: Format,
    },
}

/// Needed if several installations have the id.
#[derive(Args)]
pub(crate) struct WhichArguments {
    /// Only the installation of this source
    #[arg(long, value_parser = |text: &str| SourceName::parse(text))]
    source: Option<SourceName>,
    /// Only the installation of this app, by the platform's id of it
    #[arg(long, value_name = "APP_ID")]
    app: Option<String>,
    /// Only the installation in this place, as it is shown
    #[arg(long)]
    place: Option<String>,
}

impl From<WhichArguments> for Which {
    fn from(WhichArguments { source, app, place }: WhichArguments) -> Self {
        Self { source: source.map(Into::into), app_id: app, place }
    }
}

#[derive(Args)]
struct FilterArguments {
    /// Only installations of this source
    #[arg(long, value_parser = |text: &str| SourceName::parse(text))]
    source: Option<SourceName>,
    /// Only installations with this status
    #[arg(long, value_parser = PossibleValuesParser::new(Status::NAMES))]
    status: Option<String>,
    /// Only installations on this plan, by the platform's id of it
    #[arg(long)]
    plan: Option<String>,
    /// Continue after this cursor (next_cursor of the previous page)
    #[arg(long)]
    cursor: Option<String>,
    /// Page size, at most 200
    #[arg(long, value_parser = value_parser!(u16).range(1..=i64::from(PAGE_MAX)))]
    limit: Option<u16>,
}

impl From<FilterArguments> for Filter {
    fn from(arguments: FilterArguments) -> Self {
        let FilterArguments { source, status, plan, cursor, limit } = arguments;
        Self { source: source.map(Into::into), status, plan, cursor, limit }
    }
}

impl context::Command for Arguments {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let pool = context.pool()?;
        match self.command {
            Command::List { filter, format } => {
                let page = find::list(&pool, &Reach::Everything, &filter.into())
                    .await
                    .map_err(or_wrong_arguments)?;
                format.print(&page, render)
            }
            Command::Show { id, which, format } => {
                let which = which.into();
                let found = find::show(&pool, &Reach::Everything, &which, &id).await?;
                let found = find::related(&pool, found).await?;
                format.print(&found, output::fields)
            }
        }
    }
}

fn or_wrong_arguments(error: FindError) -> anyhow::Error {
    match error {
        FindError::BadCursor => WrongArguments(format!("--cursor: {error}")).into(),
        error => error.into(),
    }
}

fn render(page: &Page) -> String {
    let mut lines = Vec::new();
    if page.installations.is_empty() {
        lines.push("no installations".to_owned());
    }
    lines.extend(page.installations.iter().map(|found| {
        format!(
            "{:<11} {:<12} {:<32} generation {} in {}",
            found.status, found.source, found.installation_id, found.generation, found.place
        )
    }));
    if let Some(cursor) = &page.next_cursor {
        lines.push(format!("more: --cursor {cursor}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;
    use crate::store::installations::example;

    #[test]
    fn a_page_is_listed_one_installation_per_line() {
        let installations =
            vec![example("instapp_1", "superseded"), example("instapp_2", "active")];
        let next_cursor = Some("eyJzb3VyY2UiOiJibG5rIn0".to_owned());
        let changes_cursor = "1a2b3c4d5e6f-42".to_owned();
        assert_view(
            "installations-list",
            &render(&Page { installations, next_cursor, changes_cursor }),
        );
        let changes_cursor = String::new();
        let none = Page { installations: vec![], next_cursor: None, changes_cursor };
        assert_view("installations-list-of-none", &render(&none));
    }

    #[test]
    fn an_installation_is_shown_field_by_field() {
        let shown = output::fields(&example("instapp_2", "active"));
        assert_view("installations-show", &shown);
    }
}
