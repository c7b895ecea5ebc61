//! Relative links in Markdown lead to something. Links to the outside and anchors inside a page are not looked at.

use std::path::{Component, Path, PathBuf};

/// Every relative link of the page at `path` whose target, relative to the root, does not exist.
pub(super) fn broken(path: &str, text: &str, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(without_code_blocks(text)) {
        for link in links(&line).filter(|link| is_relative(link)) {
            let file = link.split('#').next().unwrap_or(link);
            if !file.is_empty() && !resolve(folder, file).is_some_and(|target| exists(&target)) {
                faults.push(format!("{path}:{number}: the link to {link} leads nowhere"));
            }
        }
    }
    faults
}

/// The lines of a page, those inside fences emptied, and inline code taken out.
fn without_code_blocks(text: &str) -> impl Iterator<Item = String> {
    let mut fenced = false;
    text.lines().map(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if fenced || fence { String::new() } else { line.split('`').step_by(2).collect() }
    })
}

/// The targets of `[text](target "title")` in one line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter_map(|target| target.split_whitespace().next())
}

fn is_relative(link: &str) -> bool {
    !link.contains("://") && !link.starts_with("mailto:") && !link.starts_with('/')
}

/// `folder/link` without `.` and `..`; none when it would leave the tree.
fn resolve(folder: &Path, link: &str) -> Option<PathBuf> {
    let mut target = PathBuf::new();
    for part in folder.join(link).components() {
        match part {
            Component::Normal(name) => target.push(name),
            Component::CurDir => {}
            Component::ParentDir => target.pop().then_some(())?,
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_leads_nowhere_is_named_with_its_line() {
        let faults = judge("docs/a.md", "see\n[b](b.md) and [c](../c.md#part)");
        assert_eq!(faults, ["docs/a.md:2: the link to b.md leads nowhere"]);
    }

    #[test]
    fn outside_links_anchors_and_code_are_left_alone() {
        let text = "[x](https://example.org) [y](#part) `[z](gone.md)`\n```\n[w](gone.md)\n```\n";
        assert_eq!(judge("a.md", text), Vec::<String>::new());
    }

    #[test]
    fn a_link_out_of_the_tree_leads_nowhere() {
        assert_eq!(judge("a.md", "[up](../c.md)").len(), 1);
    }

    fn judge(path: &str, text: &str) -> Vec<String> {
        broken(path, text, |target| target == Path::new("c.md"))
    }
}
