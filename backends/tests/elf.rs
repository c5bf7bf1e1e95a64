//! Libraries from nnc's own ELF writer are loaded by the system's loader and called; a C linker's library is held beside them.

use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, types};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataDescription, Linkage, Module, default_libcall_names};
use cranelift_object::{ObjectBuilder, ObjectModule};
use nnc_backends::cpu::elf::{Library, write_library};
use nnc_ir::Tensor;
use std::process::Command;

/// `float f(int64 i)`: cosf of the i-th weight, plus the i-th entry of a table in read-only data.
fn object() -> Vec<u8> {
    let mut flags = settings::builder();
    flags.set("is_pic", "true").expect("a setting");
    let isa = cranelift_native::builder().expect("a native target").finish(settings::Flags::new(flags)).expect("an instruction set");
    let mut m = ObjectModule::new(ObjectBuilder::new(isa, "test", default_libcall_names()).expect("an object"));
    let mut math = m.make_signature();
    math.params.push(AbiParam::new(types::F32));
    math.returns.push(AbiParam::new(types::F32));
    let cosf = m.declare_function("cosf", Linkage::Import, &math).expect("an import");
    let weights = m.declare_data("test_weights", Linkage::Import, false, false).expect("an import");
    let table = m.declare_data("table", Linkage::Local, false, false).expect("data");
    let mut bytes = DataDescription::new();
    bytes.define([10.0f32, 20.0, 30.0].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into());
    m.define_data(table, &bytes).expect("data");

    let last = m.declare_data("last", Linkage::Local, true, false).expect("data");
    let mut word = DataDescription::new();
    word.define_zeroinit(8);
    m.define_data(last, &word).expect("data");

    let mut sig = m.make_signature();
    sig.params.push(AbiParam::new(types::I64));
    sig.returns.push(AbiParam::new(types::F32));
    let f = m.declare_function("test_f", Linkage::Export, &sig).expect("a function");
    let mut context = m.make_context();
    context.func.signature = sig;
    let mut scratch = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut context.func, &mut scratch);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    b.seal_block(entry);
    let i = b.block_params(entry)[0];
    let offset = b.ins().ishl_imm_u(i, 2);
    let (weights, table) = (m.declare_data_in_func(weights, b.func), m.declare_data_in_func(table, b.func));
    let cosf = m.declare_func_in_func(cosf, b.func);
    let at = |b: &mut FunctionBuilder, data| {
        let base = b.ins().symbol_value(types::I64, data);
        let address = b.ins().iadd(base, offset);
        b.ins().load(types::F32, MemFlagsData::trusted(), address, 0)
    };
    // Writable data must be writable after the loader has protected what it relocated.
    let last = m.declare_data_in_func(last, b.func);
    let last = b.ins().symbol_value(types::I64, last);
    b.ins().store(MemFlagsData::trusted(), i, last, 0);
    let (x, y) = (at(&mut b, weights), at(&mut b, table));
    let call = b.ins().call(cosf, &[x]);
    let c = b.inst_results(call)[0];
    let sum = b.ins().fadd(c, y);
    b.ins().return_(&[sum]);
    b.finalize(m.target_config());
    m.define_function(f, &mut context).expect("a function");
    m.finish().emit().expect("an object")
}

fn library(object: &[u8]) -> Vec<u8> {
    let exports = ["test_f".to_string()];
    let weight = |x: &[f32]| Tensor::new(&[x.len()], x);
    let weights = [(0, weight(&[0.5, 1.0])), (64, weight(&[2.0]))];
    let l = Library { object, exports: &exports, soname: "test.so", weights_symbol: "test_weights", weights: &weights };
    let mut out = vec![];
    write_library(&l, &mut out).expect("a library");
    out
}

#[test]
fn the_loader_takes_it_and_the_numbers_are_right() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("test.so");
    std::fs::write(&path, library(&object())).expect("written");
    // SAFETY: the library has no initialisers.
    let lib = unsafe { libloading::Library::new(&path) }.expect("loads");
    // SAFETY: the function was generated with this signature.
    let f: libloading::Symbol<unsafe extern "C" fn(i64) -> f32> = unsafe { lib.get(b"test_f") }.expect("exported");
    for (i, want) in [0.5f32.cos() + 10.0, 1f32.cos() + 20.0].into_iter().enumerate() {
        // SAFETY: as above; the index is inside table and weights.
        let got = unsafe { f(i as i64) };
        assert!((got - want).abs() < 1e-5, "{i}: {got} {want}");
    }
}

#[test]
fn readers_of_elf_accept_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("test.so");
    std::fs::write(&path, library(&object())).expect("written");
    let Ok(done) = Command::new("readelf").args(["-aW"]).arg(&path).output() else {
        eprintln!("SKIPPED readers_of_elf_accept_it: no readelf");
        return;
    };
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.stderr.is_empty(), "readelf complains: {}", String::from_utf8_lossy(&done.stderr));
    for needle in
        ["libm.so.6", "SONAME", "test_f", "cosf", "GNU_STACK      0x000000 0x0000000000000000 0x0000000000000000 0x000000 0x000000 RW ", ".weights"]
    {
        assert!(text.contains(needle), "no {needle} in:\n{text}");
    }
    assert!(!text.contains("libc.so.6"), "nothing of libc is called");
}

#[test]
fn the_same_bytes_twice() {
    assert_eq!(library(&object()), library(&object()));
}
