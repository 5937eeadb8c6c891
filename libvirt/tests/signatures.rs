//! The declarations in src/sys.rs are those of libvirt's headers: the C compiler says so.

use std::fmt::Write as _;
use std::process::Command;

const SOURCE: &str = include_str!("../src/sys.rs");

/// How C writes a type.
fn in_c(rust: &str) -> &'static str {
    match rust {
        "c_int" => "int",
        "c_uint" => "unsigned int",
        "c_ulonglong" => "unsigned long long",
        "*mut c_ulong" => "unsigned long *",
        "*mut c_int" => "int *",
        "*mut c_char" => "char *",
        "*const c_char" => "const char *",
        "*mut *const c_char" => "const char **",
        "*mut c_void" => "void *",
        "*mut Connect" => "virConnectPtr",
        "*mut Domain" => "virDomainPtr",
        "*mut *mut *mut Domain" => "virDomainPtr **",
        "*mut Checkpoint" => "virDomainCheckpointPtr",
        "*mut *mut *mut Checkpoint" => "virDomainCheckpointPtr **",
        "*mut StoragePool" => "virStoragePoolPtr",
        "*mut StorageVol" => "virStorageVolPtr",
        "*mut StoragePoolInfo" => "virStoragePoolInfoPtr",
        "*mut StorageVolInfo" => "virStorageVolInfoPtr",
        "*mut Stream" => "virStreamPtr",
        "usize" => "size_t",
        "*mut DomainBlockInfo" => "virDomainBlockInfoPtr",
        "*mut *mut DomainStatsRecord" => "virDomainStatsRecordPtr *",
        "*mut *mut *mut DomainStatsRecord" => "virDomainStatsRecordPtr **",
        "*mut TypedParameter" => "virTypedParameterPtr",
        "*mut *mut TypedParameter" => "virTypedParameterPtr *",
        "*mut VirError" => "virErrorPtr",
        "GenericCallback" => "virConnectDomainEventGenericCallback",
        "CloseFunc" => "virConnectCloseFunc",
        "Option<FreeCallback>" => "virFreeCallback",
        "Option<ErrorFunc>" => "virErrorFunc",
        other => panic!("{other} has no C type yet"),
    }
}

fn arguments(list: &str) -> String {
    let each: Vec<&str> = list.split(',').map(str::trim).filter(|each| !each.is_empty()).map(in_c).collect();
    if each.is_empty() { "void".to_owned() } else { each.join(", ") }
}

/// `name: fn(…) -> result;` of the list of functions.
fn functions() -> Vec<(String, String, String)> {
    let list = SOURCE.split("\nfunctions! {\n").nth(1).expect("the list").split("\n}\n").next().expect("its end");
    let each = list.split(';').map(str::trim).filter(|each| !each.is_empty());
    each.map(|declaration| {
        let (name, rest) = declaration.split_once(':').expect("a name");
        let (list, result) = rest.trim().strip_prefix("fn(").expect("a function").rsplit_once(')').expect("its end");
        let result = result.trim().strip_prefix("->").map_or("void", |result| in_c(result.trim()));
        (name.to_owned(), arguments(list), result.to_owned())
    })
    .collect()
}

/// `pub(crate) const NAME: type = value;`
fn constants() -> Vec<(String, String)> {
    let each = SOURCE.lines().filter_map(|line| line.trim().strip_prefix("pub(crate) const VIR_"));
    each.map(|line| {
        let (name, rest) = line.split_once(':').expect("a type");
        let value = rest.rsplit_once("= ").expect("a value").1.trim_end_matches(';');
        (format!("VIR_{name}"), value.to_owned())
    })
    .collect()
}

#[test]
fn they_are_those_of_the_headers() {
    let (functions, constants) = (functions(), constants());
    assert!(functions.len() > 30 && constants.len() > 30, "{functions:?} {constants:?}");
    let mut c = String::from("#include <stddef.h>\n#include <libvirt/libvirt.h>\n#include <libvirt/virterror.h>\n");
    for (name, arguments, result) in functions {
        writeln!(c, "{result} (*check_{name})({arguments}) = {name};").unwrap();
    }
    for (name, value) in constants {
        writeln!(c, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    // Callbacks that go through the generic type.
    for (check, expected) in [
        ("virConnectDomainEventCallback", "int (*)(virConnectPtr, virDomainPtr, int, int, void *)"),
        (
            "virConnectDomainEventJobCompletedCallback",
            "void (*)(virConnectPtr, virDomainPtr, virTypedParameterPtr, int, void *)",
        ),
        ("virConnectDomainEventDeviceRemovedCallback", "void (*)(virConnectPtr, virDomainPtr, const char *, void *)"),
        (
            "virConnectDomainEventBlockThresholdCallback",
            "void (*)(virConnectPtr, virDomainPtr, const char *, const char *, unsigned long long, unsigned long long, void *)",
        ),
        ("virConnectCloseFunc", "void (*)(virConnectPtr, int, void *)"),
        ("virErrorFunc", "void (*)(void *, virErrorPtr)"),
    ] {
        writeln!(c, "_Static_assert(_Generic(({check})0, {expected}: 1, default: 0), \"{check}\");").unwrap();
    }
    // Layouts, of x86-64 and of 64-bit ARM alike.
    for layout in [
        "offsetof(virError, domain) == 4",
        "offsetof(virError, message) == 8",
        "sizeof(virTypedParameter) == 96",
        "offsetof(virTypedParameter, type) == 80",
        "offsetof(virTypedParameter, value) == 88",
        "sizeof(virDomainBlockInfo) == 24",
        "offsetof(virDomainBlockInfo, allocation) == 8",
        "sizeof(virStoragePoolInfo) == 32",
        "offsetof(virStoragePoolInfo, available) == 24",
        "sizeof(virStorageVolInfo) == 24",
        "offsetof(virStorageVolInfo, allocation) == 16",
        "sizeof(virDomainStatsRecord) == 24",
        "offsetof(virDomainStatsRecord, params) == 8",
        "offsetof(virDomainStatsRecord, nparams) == 16",
    ] {
        writeln!(c, "_Static_assert({layout}, \"{layout}\");").unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("signatures.c");
    std::fs::write(&file, &c).unwrap();
    let output = Command::new("cc").args(["-std=c11", "-fsyntax-only", "-Werror"]).arg(&file).output().expect("cc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
