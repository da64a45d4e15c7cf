//! Which installations a caller may know of. Every read of the API has it in its
//! SQL, in a form that an index serves: a row beyond it is not fetched, so that
//! neither answer nor time tells whether there is one.

use domain::id::percent_encode;

/// What a caller reaches. Of what is beyond it, the caller learns nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    Everything,
    Sources(Vec<String>),
    /// These apps, in each of these sources.
    Apps {
        sources: Vec<String>,
        app_ids: Vec<String>,
    },
}

/// The first part of a place, which is the app's id, encoded.
pub(crate) const APP_OF_PLACE: &str = "split_part(place, '/', 1)";

impl Reach {
    /// `None` is every source.
    pub(crate) fn sources(&self) -> Option<&[String]> {
        match self {
            Self::Everything => None,
            Self::Sources(sources) | Self::Apps { sources, .. } => Some(sources),
        }
    }

    /// `None` is every app.
    pub(crate) fn app_ids(&self) -> Option<&[String]> {
        match self {
            Self::Everything | Self::Sources(_) => None,
            Self::Apps { app_ids, .. } => Some(app_ids),
        }
    }

    /// The same as they stand in [`APP_OF_PLACE`].
    pub(crate) fn app_parts(&self) -> Option<Vec<String>> {
        Some(self.app_ids()?.iter().map(|app| percent_encode(app)).collect())
    }

    /// The same within one source, which may be beyond it.
    pub(crate) fn within(&self, source: Option<&str>) -> Self {
        let Some(source) = source else { return self.clone() };
        let is_reached = self.sources().is_none_or(|all| all.iter().any(|it| it == source));
        let sources = if is_reached { vec![source.to_owned()] } else { Vec::new() };
        match self.app_ids() {
            None => Self::Sources(sources),
            Some(app_ids) => Self::Apps { sources, app_ids: app_ids.to_vec() },
        }
    }

    /// What it consists of, to be joined with what is read of each part: a source, or an
    /// app of one. Its parameters are those of [`Self::condition`].
    ///
    /// An index is asked for each part, by equality. For a list of values Postgres may read
    /// the rows of others, too, and throw them away.
    pub(crate) fn parts(&self, first: usize) -> String {
        let (sources, apps) = (first, first + 1);
        match self {
            Self::Everything => "(VALUES (true)) AS part (everything)".to_owned(),
            Self::Sources(_) => format!("unnest(${sources}::text[]) AS source (part_source)"),
            Self::Apps { .. } => format!(
                "unnest(${sources}::text[]) AS source (part_source)
                 CROSS JOIN unnest(${apps}::text[]) AS app (part_app)"
            ),
        }
    }

    /// Whether a row with `source`, of which `app` tells the app, is of the part.
    pub(crate) fn is_of_part(&self, app: &str, first: usize) -> String {
        let (sources, apps) = (first, first + 1);
        match self {
            Self::Everything => format!("${sources}::text[] IS NULL AND ${apps}::text[] IS NULL"),
            Self::Sources(_) => format!("source = part_source AND ${apps}::text[] IS NULL"),
            Self::Apps { .. } => format!("source = part_source AND {app} = part_app"),
        }
    }

    /// A condition on the rows of `table`, of which `app` tells the app. Its
    /// parameters are the sources, with the number `first`, and the apps after it.
    pub(crate) fn condition(&self, table: &str, app: &str, first: usize) -> String {
        let (sources, apps) = (first, first + 1);
        let of_source = match self.sources() {
            None => format!("${sources}::text[] IS NULL"),
            Some(_) => format!("{table}.source = ANY (${sources}::text[])"),
        };
        let of_app = match self.app_ids() {
            None => format!("${apps}::text[] IS NULL"),
            Some(_) => format!("{app} = ANY (${apps}::text[])"),
        };
        format!("({of_source} AND {of_app})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apps() -> Reach {
        Reach::Apps { sources: vec!["a".into(), "b".into()], app_ids: vec!["x y".into()] }
    }

    #[test]
    fn a_source_narrows_what_is_reached_and_never_widens_it() {
        assert_eq!(Reach::Everything.within(Some("z")).sources().unwrap(), ["z"]);
        assert_eq!(apps().within(Some("b")).sources().unwrap(), ["b"]);
        assert_eq!(apps().within(Some("z")).sources().unwrap(), [""; 0]);
        assert_eq!(apps().within(Some("b")).app_ids().unwrap(), ["x y"]);
        assert_eq!(apps().within(None), apps());
    }

    #[test]
    fn an_app_is_found_by_the_first_part_of_its_places() {
        let place = domain::id::Place::of(&["x y", "here"]);
        assert_eq!(apps().app_parts().unwrap(), [place.as_str().split('/').next().unwrap()]);
    }
}
