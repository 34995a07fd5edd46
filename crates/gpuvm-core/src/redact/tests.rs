use std::path::Path;

use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;

fn redactor() -> Redactor {
    let mut redactor = Redactor::new();
    redactor.host("node7.example.org");
    redactor.learn("the file /home/alice/vm.img");
    redactor.path(Path::new("/home/alice/vms/win 11.qcow2"), Last::File);
    redactor.path(Path::new("/srv/acme corp/base.img"), Last::File);
    redactor.path(Path::new("/mnt/lab-data"), Last::Folder);
    redactor.serial(0x0102_0304_0506_0708);
    redactor
}

#[rstest]
#[case::host("node7 said: NODE7.example.org is node7's name", "host-1 said: host-2 is host-1's name")]
#[case::domain("mail.example.org", "mail.host-1")]
#[case::no_host("node70 xnode7", "node70 xnode7")]
#[case::mac("52:54:00:ab:cd:ef 52-54-00-AB-CD-EF", "02:00:00:00:00:01 02:00:00:00:00:01")]
#[case::interface("enx525400abcdef: 52:54:00:ab:cd:ef", "enx020000000001: 02:00:00:00:00:01")]
#[case::infiniband("00:00:00:90:fe:80:00:00", "00:00:00:00:00:00:00:01")]
#[case::device_serial("01-02-03-04-05-06-07-08", "00-00-00-00-00-00-00-01")]
#[case::more_pairs("01:02:03:04:05:06:07:08:09", "id-1")]
#[case::ip4("via 10.1.2.3, 10.1.2.3:22; 10.1.2.4.", "via 198.18.0.1, 198.18.0.1:22; 198.18.0.2.")]
#[case::ip6("fe80::1%eth0 [2001:db9::5]:22", "2001:db8::1%eth0 [2001:db8::2]:22")]
#[case::uuid(
    "root=UUID=8ad1A9d4-5555-4bbb-9ccc-0123456789ab ro",
    "root=UUID=00000000-0000-4000-8000-000000000001 ro"
)]
#[case::luks("luks-8ad1a9d4-5555-4bbb-9ccc-0123456789ab", "luks-00000000-0000-4000-8000-000000000001")]
#[case::machine_id("0123456789abcdef0123456789abcdef", "00000000000000000000000000000001")]
#[case::kernel_words(
    "rd.luks.key=/keys/a rd.lvm.lv=vg0/root PARTUUID=abcd1234-02 LABEL=alices quiet",
    "rd.luks.key=secret-1 rd.lvm.lv=secret-2 PARTUUID=secret-3 LABEL=secret-4 quiet"
)]
#[case::password("password = \"a b\" x", "password = \"secret-1\" x")]
#[case::qemu_secret("-object secret,id=s0,data=hush -m 1G", "-object secret,id=s0,data=secret-1 -m 1G")]
#[case::qemu_json(r#"'{"driver":"x","serial":"WD-123"}'"#, r#"'{"driver":"x","serial":"serial-1"}'"#)]
#[case::serial(
    "SerialNumber: ABC123 72623859790382856 0102030405060708",
    "SerialNumber: serial-1 serial-2 serial-3"
)]
#[case::user("/home/alice/x /var/mail/alice alice", "/home/user-1/x /var/mail/user-1 alice")]
#[case::disk("/home/alice/vms/win 11.qcow2, win 11.qcow2.", "/home/user-1/vms/disk-1.qcow2, disk-1.qcow2.")]
#[case::folder("/srv/acme corp/base.img 'acme corp/x'", "/srv/folder-1/disk-1.img 'folder-1/x'")]
#[case::mount("/dev/nvme0n1 is mounted on /mnt/lab-data", "/dev/nvme0n1 is mounted on /mnt/folder-1")]
#[case::no_name("/mnt/lab-data2 base.img2 a/base.images", "/mnt/lab-data2 base.img2 a/base.images")]
fn what_names_somebody_is_taken_out(#[case] text: &str, #[case] clean: &str) {
    assert_eq!(redactor().text(text), clean);
}

/// What a fault is found by stays.
#[rstest]
#[case("0000:81:00.0 10000:e1:1f.7 (VGA controller 10de:2330, class 030000)")]
#[case("vfio-pci.ids=10de:2330,10de:22ba intel_iommu=on iommu=pt hugepagesz=1G hugepages=64 video=efifb:off")]
#[case("pci:v000010DEd00002330sv000010DEsd000016C1bc03sc02i00")]
#[case("DMAR: DRHD base: 0x000000fed90000 flags: 0x1; BAR 1 [mem 0x2000000000-0x3fffffffff 64bit pref]")]
#[case("6.12.0-1-amd64 QEMU 7.2.0 127.0.0.1:5901 0.0.0.0 [::1]:5977 0-3,8-11 64G 16.0 GT/s")]
#[case("serial = \"console\"\nname = \"my-vm\"\nbdf = \"0000:81:00.0\"\nserial = \"log\"")]
#[case(
    "/usr/share/OVMF/OVMF_CODE_4M.fd /sys/bus/pci/devices/0000:81:00.0/driver_override /var/lib/gpuvm/vm/x/overlays/"
)]
#[case("each key of the profile; unknown key `x`")]
#[case("größer als 5 µs — 日本語")]
fn what_a_fault_is_found_by_stays(#[case] text: &str) {
    assert_eq!(redactor().text(text), text);
}

#[test]
fn documents_keep_their_shape() {
    let document = json!({
        "gpuvm-facts": 1, "files": {"/srv/acme corp/base.img": "x"}, "serial": 72_623_859_790_382_856_u64,
        "nested": [{"serial": "console", "password": "hush", "cmdline": "a LABEL=mine", "host": "node7", "none": null, "yes": true}]
    });
    let clean = json!({
        "gpuvm-facts": 1, "files": {"/srv/folder-1/disk-1.img": "x"}, "serial": 1,
        "nested": [{"serial": "console", "password": "secret-2", "cmdline": "a LABEL=secret-1", "host": "host-1", "none": null, "yes": true}]
    });
    assert_eq!(redactor().json(&document), clean);
}

/// Things that must not survive, with the forms that they have.
fn secret() -> impl Strategy<Value = String> {
    prop_oneof![
        "([0-9a-f]{2}:){5}[0-9a-f]{2}",
        "[1-9][0-9]?\\.[0-9]{1,2}\\.[0-9]{1,2}\\.[1-9][0-9]?",
        "2[0-9a-f]{3}:db9:[1-9a-f]{1,4}::[1-9a-f]{1,4}",
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "[0-9a-f]{32}",
        Just("node7".to_owned()),
        Just("/home/alice/".to_owned()),
        Just("win 11.qcow2".to_owned()),
        Just("/mnt/lab-data".to_owned()),
    ]
}

proptest! {
    #[test]
    fn no_secret_survives_wherever_it_stands(
        secrets in proptest::collection::vec(secret(), 1..4),
        between in proptest::collection::vec("[ ,;|<>(){}=\"'\n]{1,3}|[ ][a-z]{1,5}[ =]", 5)
    ) {
        let mut text = String::new();
        for (secret, between) in secrets.iter().zip(&between) {
            text.push_str(between);
            text.push_str(secret);
        }
        text.push_str(&between[4]);
        let (clean, in_json) = (redactor().text(&text), redactor().json(&json!({"a": [text]})).to_string());
        for secret in &secrets {
            // A stand-in may happen to be the thing that it stands for.
            let stand_in = redactor().text(secret);
            prop_assert!(stand_in == *secret || !clean.contains(secret.as_str()), "{secret} is in {clean:?}");
            prop_assert!(stand_in == *secret || !in_json.contains(secret.as_str()), "{secret} is in {in_json:?}");
        }
        prop_assert_eq!(clean, redactor().text(&text), "it says otherwise when asked again");
    }

    #[test]
    fn any_text_is_taken(text in "\\PC*|[0-9a-f:./=\"'-]*") {
        redactor().text(&text);
        redactor().json(&json!({"serial": text, "x": [text]}));
    }
}
