//! What couldn't be read.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};

pub(super) const CHECK: Definition = Definition {
    name: "facts-unread",
    layer: Layer::Resources,
    why: "what can't be read can't be judged, and the checks above took it for absent",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let unread = &case.facts.unread;
    if unread.is_empty() {
        return vec![Judgement::of_host(Verdict::Ok, "everything that was looked for could be read")];
    }
    let found = match unread.len() {
        1 => "something of the host couldn't be read".to_owned(),
        count => format!("{count} things of the host couldn't be read"),
    };
    let judgement = Judgement::of_host(Verdict::Unknown, found);
    let judgement = unread.iter().fold(judgement, |judgement, what| judgement.read(what.clone()));
    let root = case.facts.platform.user.as_ref().is_some_and(|user| user.uid == 0);
    vec![if root {
        judgement
    } else {
        judgement.remedy(Remedy::new("run gpuvm as root, which may read more"))
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::{check, verdict};
    use crate::facts::HostFacts;

    #[test]
    fn what_is_unread_is_listed() {
        assert_eq!(verdict(CHECK.name, &HostFacts::default(), None), Verdict::Ok);
        let unread = vec!["read /sys/a: Permission denied".to_owned(), "read /sys/b: no".to_owned()];
        let found = check(CHECK.name, &HostFacts { unread: unread.clone(), ..HostFacts::default() }, None);
        assert_eq!((found.verdict, found.read), (Verdict::Unknown, unread));
    }
}
