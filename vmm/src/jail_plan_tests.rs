use super::*;

#[test]
fn what_is_no_limit_is_refused() {
    for (text, expected) in [
        ("", BadLimit::NotPair),
        ("memory.max", BadLimit::NotPair),
        ("memory.max=", BadLimit::NotPair),
        ("=1", BadLimit::NotPair),
        ("memory=1", BadLimit::File),
        (".max=1", BadLimit::File),
        ("memory.=1", BadLimit::File),
        ("../memory.max=1", BadLimit::File),
        ("memory..max=1", BadLimit::File),
        ("a/memory.max=1", BadLimit::File),
        ("cgroup.procs=1", BadLimit::File),
        ("memory.max=1\n2", BadLimit::Value),
    ] {
        assert_eq!(text.parse::<Limit>(), Err(expected), "{text}");
    }
    let limit: Limit = "io.max=8:0 rbps=1048576".parse().expect("a limit");
    assert_eq!(
        (limit.controller(), limit.value.as_str()),
        ("io", "8:0 rbps=1048576")
    );
}

#[test]
fn a_parent_stays_in_its_tree() {
    for text in ["", "/", "/a", "..", "a/../b", "./a"] {
        assert!(parse_parent(text).is_err(), "{text}");
    }
    assert_eq!(parse_parent("a/b"), Ok(PathBuf::from("a/b")));
}

#[test]
fn limits_of_the_process_have_the_jailers_names() {
    assert_eq!("fsize=5".parse(), Ok(ResourceLimit::FileBytes(5)));
    assert_eq!("no-file=0".parse(), Ok(ResourceLimit::Files(0)));
    for text in ["", "fsize", "fsize=", "fsize=-1", "core=1", "no-file=1x"] {
        assert_eq!(
            text.parse::<ResourceLimit>(),
            Err(BadResourceLimit),
            "{text}"
        );
    }
}
