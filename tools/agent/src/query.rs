//! What stands behind the `?` of a path.

use crate::refusal::Refusal;

/// Names and values, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Takes `text` apart.
    ///
    /// # Errors
    /// 400: it is not percent-encoded UTF-8.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        });
        let pairs: Option<Vec<_>> = decoded.collect();
        pairs.map(Self).ok_or_else(|| {
            Refusal::bad(format!("The query {text:?} is not percent-encoded UTF-8."))
        })
    }

    /// The last value of `name`.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    /// All values of `name`.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let same = move |pair: &&(String, String)| pair.0 == name;
        self.0.iter().filter(same).map(|(_, value)| value.as_str())
    }

    /// The value of `name` as a number.
    ///
    /// # Errors
    /// 400: it is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let parse = |text: &str| {
            text.parse().map_err(|_| {
                Refusal::bad(format!(
                    "{name}: {text:?} is not allowed: a whole number from 0."
                ))
            })
        };
        self.text(name).map(parse).transpose()
    }

    /// Whether `name` is wanted.
    ///
    /// # Errors
    /// 400: it is said neither so nor so.
    pub fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.text(name) {
            None | Some("0" | "false") => Ok(false),
            Some("" | "1" | "true") => Ok(true),
            Some(text) => Err(Refusal::bad(format!(
                "{name}: {text:?} is not allowed: one of 0, 1, false, true."
            ))),
        }
    }

    /// Looks whether there are no names but `known`.
    ///
    /// # Errors
    /// 400: there is another one.
    pub fn only(&self, known: &[&str]) -> Result<(), Refusal> {
        match self
            .0
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()))
        {
            None => Ok(()),
            Some((name, _)) => Err(Refusal::bad(format!(
                "The query has {name:?}; allowed: {}.",
                known.join(", ")
            ))),
        }
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_decoded() {
        let query = Query::parse("label=a%3Db&label=c+d&follow&tail=7").unwrap();
        assert_eq!(query.all("label").collect::<Vec<_>>(), ["a=b", "c d"]);
        assert_eq!(
            (query.flag("follow"), query.flag("x")),
            (Ok(true), Ok(false))
        );
        assert_eq!(query.number("tail"), Ok(Some(7)));
        assert_eq!(Query::parse("").unwrap(), Query::default());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in ["a=%", "a=%4", "a=%zz", "a=%+4", "a=%ff"] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
        let query = Query::parse("tail=-1&follow=maybe").unwrap();
        assert!(query.number("tail").is_err() && query.flag("follow").is_err());
        assert!(query.only(&["tail"]).is_err());
        assert!(query.only(&["tail", "follow"]).is_ok());
    }
}
