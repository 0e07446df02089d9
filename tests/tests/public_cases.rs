//! docs/public-cases.md names tests that there are.

use std::fs;
use std::path::Path;

#[test]
fn each_test_that_the_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../docs/public-cases.md")).expect("the page");
    let mut sources = String::new();
    let mut folders = vec![root.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => sources.push_str(&fs::read_to_string(path).expect("a source")),
            }
        }
    }
    let words = page.split('`').skip(1).step_by(2);
    let tests: Vec<&str> = words.filter(|word| word.matches('_').count() > 2).collect();
    assert!(tests.len() > 40, "{tests:?}");
    for test in tests {
        assert!(
            sources.contains(&format!("fn {test}()")),
            "there is no test {test}"
        );
    }
}
