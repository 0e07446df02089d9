//! Who runs the program, by the guest's own `/etc/passwd` and `/etc/group`.

/// An identity, as the kernel and the program's environment need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User.
    pub uid: u32,
    /// First group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home folder: `/` for one that `/etc/passwd` does not know.
    pub home: String,
}

/// Why nobody can run the program.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindAccountError {
    /// Neither in `/etc/passwd` nor a number.
    #[error("no user {name} in /etc/passwd")]
    User {
        /// As it was asked for.
        name: String,
    },
    /// Neither in `/etc/group` nor a number.
    #[error("no group {name} in /etc/group")]
    Group {
        /// As it was asked for.
        name: String,
    },
}

/// A line of `/etc/passwd`: `name:password:uid:gid:comment:home:shell`.
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1)?;
        Some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// A line of `/etc/group`: `name:password:gid:user,user`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        let members = fields.next().unwrap_or_default();
        Some(Group { name, gid, members })
    })
}

/// The account that `user` names: `user`, `uid`, `user:group`, `uid:gid`; root when nothing is named. `passwd` and `group`
/// are the texts of the guest's files. A group that is named takes the place of all others, as in a container.
///
/// # Errors
/// When a name stands in neither.
pub fn find(user: Option<&str>, passwd: &str, group: &str) -> Result<Account, FindAccountError> {
    let user = user.unwrap_or_default();
    let (user, named_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let mut account = find_user(user, passwd, group)?;
    if let Some(name) = named_group.filter(|name| !name.is_empty()) {
        let by_name = groups(group).find(|group| group.name == name);
        let gid = by_name.map(|group| group.gid).or_else(|| name.parse().ok());
        account.gid = gid.ok_or_else(|| FindAccountError::Group {
            name: name.to_owned(),
        })?;
        account.groups.clear();
    }
    Ok(account)
}

fn find_user(user: &str, passwd: &str, group: &str) -> Result<Account, FindAccountError> {
    let number = if user.is_empty() {
        Some(0)
    } else {
        user.parse().ok()
    };
    let by_name = users(passwd).find(|entry| entry.name == user);
    let Some(entry) = by_name.or_else(|| users(passwd).find(|entry| number == Some(entry.uid)))
    else {
        let uid = number.ok_or_else(|| FindAccountError::User {
            name: user.to_owned(),
        })?;
        let home = if uid == 0 { "/root" } else { "/" };
        return Ok(Account {
            uid,
            gid: 0,
            groups: Vec::new(),
            home: home.to_owned(),
        });
    };
    let is_member = |group: &Group<'_>| group.members.split(',').any(|name| name == entry.name);
    Ok(Account {
        uid: entry.uid,
        gid: entry.gid,
        groups: groups(group)
            .filter(is_member)
            .map(|group| group.gid)
            .collect(),
        home: if entry.home.is_empty() {
            "/"
        } else {
            entry.home
        }
        .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        bad line\n\
        www:x:33:34:www:/var/www:/usr/sbin/nologin\n\
        7:x:8:9::/seven:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nadm:x:4:syslog,www\nssl:x:50:www\nempty:x:51\n";

    fn check(user: Option<&str>, uid: u32, gid: u32, further: &[u32], home: &str) {
        let expected = Account {
            uid,
            gid,
            groups: further.to_vec(),
            home: home.to_owned(),
        };
        assert_eq!(find(user, PASSWD, GROUP), Ok(expected), "{user:?}");
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        check(None, 0, 0, &[], "/root");
        check(Some(""), 0, 0, &[], "/root");
        check(Some("www"), 33, 34, &[4, 50], "/var/www");
        check(Some("33"), 33, 34, &[4, 50], "/var/www");
        check(Some("1000"), 1000, 0, &[], "/");
        // A name that looks like a number is a name first.
        check(Some("7"), 8, 9, &[], "/seven");
    }

    #[test]
    fn a_named_group_replaces_the_others() {
        check(Some("www:adm"), 33, 4, &[], "/var/www");
        check(Some("www:77"), 33, 77, &[], "/var/www");
        check(Some("1000:1000"), 1000, 1000, &[], "/");
        check(Some("www:"), 33, 34, &[4, 50], "/var/www");
        check(Some(":adm"), 0, 4, &[], "/root");
    }

    #[test]
    fn unknown_names_are_errors() {
        let user = |name: &str| {
            Err(FindAccountError::User {
                name: name.to_owned(),
            })
        };
        let group = |name: &str| {
            Err(FindAccountError::Group {
                name: name.to_owned(),
            })
        };
        assert_eq!(find(Some("nobody"), PASSWD, GROUP), user("nobody"));
        assert_eq!(find(Some("-1"), PASSWD, GROUP), user("-1"));
        assert_eq!(find(Some("www:none"), PASSWD, GROUP), group("none"));
    }

    #[test]
    fn a_guest_without_the_files_has_root() {
        let account = find(None, "", "").unwrap();
        assert_eq!((account.uid, account.home.as_str()), (0, "/root"));
    }
}
