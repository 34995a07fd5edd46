use gpuvm_core::soak::CycleKind;

use super::*;

fn vm() -> VmName {
    VmName::new("vm1").unwrap()
}

#[test]
fn a_vm_is_soaked_by_one_gpuvm_alone_and_another_vm_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::below(folder.path());
    let held = hold(&places, &vm()).unwrap();
    let error = hold(&places, &vm()).unwrap_err().to_string();
    let pid = std::process::id();
    assert_eq!(error, format!("a soak of VM vm1 is run by another gpuvm already (process {pid})"));
    hold(&places, &VmName::new("vm2").unwrap()).unwrap();
    drop(held);
    hold(&places, &vm()).unwrap();
}

#[test]
fn soaks_that_begin_in_the_same_second_have_a_folder_each() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::below(folder.path());
    let names = [1_800_000_000, 1_800_000_000].map(|now| new_folder(&places, &vm(), None, now).unwrap());
    let soaks = folder.path().join("log/vm1/soak");
    assert_eq!(names, [soaks.join("20270115T080000Z"), soaks.join("20270115T080001Z")]);
}

#[test]
fn the_newest_soak_is_the_last_one_that_has_begun() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::below(folder.path());
    assert_eq!(newest(&places, &vm()).unwrap(), None);
    let line = r#"{"line":"begun","version":1,"at":1,"vm":"vm1","settings":{"profile":"vm.toml","profile_text":"",
        "ready":{"timeout_seconds":1}},"machine":{"gpuvm":"0","kernel":"6"},"devices":[]}"#;
    for (name, text) in
        [("20270101T000000Z", &*line.replace('\n', "")), ("20270102T000000Z", "{\"line\":\"be")]
    {
        make_dir(&places.soaks(&vm()).join(name)).unwrap();
        let end = if text.ends_with('}') { "\n" } else { "" };
        fs::write(places.soaks(&vm()).join(name).join(RECORD), format!("{text}{end}")).unwrap();
    }
    assert_eq!(newest(&places, &vm()).unwrap(), Some(places.soaks(&vm()).join("20270101T000000Z")));
}

#[test]
fn the_end_of_a_console_is_kept_and_not_of_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::below(&folder.path().join("gpuvm"));
    assert_eq!(keep_console(&places, &vm(), folder.path(), 1).unwrap(), None);
    make_dir(&places.logs(&vm())).unwrap();
    let size = usize::try_from(CONSOLE_MAX).unwrap();
    fs::write(places.logs(&vm()).join("console.log"), "x".repeat(size) + "the end").unwrap();
    let kept = keep_console(&places, &vm(), folder.path(), 7).unwrap().unwrap();
    assert_eq!(kept, folder.path().join("console/cycle-7.log"));
    let text = fs::read_to_string(&kept).unwrap();
    assert!(text.len() == size && text.ends_with("xthe end"));
    let count = (8..100)
        .filter(|cycle| keep_console(&places, &vm(), folder.path(), *cycle).unwrap().is_some())
        .count();
    assert_eq!(count, CONSOLES_MAX - 1);
}

#[test]
fn what_gpuvm_itself_uses_is_read() {
    let before = own_use();
    let _open = File::open("/dev/null").unwrap();
    let now = own_use();
    assert!(before.rss_kib > 500, "{before:?}");
    assert!(now.fds > 2, "{now:?}");
}

#[test]
fn a_record_names_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut record = Record::begin(folder.path()).unwrap();
    assert_eq!(record.path(), folder.path().join("record.jsonl"));
    record.note(1, CycleKind::Clean).unwrap();
    assert_eq!(record.folder(), folder.path());
}
