//! Every example of every operation: the lowered program computes what the interpreter does.

use nnc_ir::Target;
use nnc_ir::eval::{Env, run};
use nnc_ir::examples::{Example, compare, examples};
use nnc_ir::kernel::eval::eval_program;
use nnc_ir::kernel::verify::verify_program;
use nnc_ir::target::Isa;
use nnc_passes::lower;

fn check(e: &Example) -> Result<(), String> {
    let g = e.graph().map_err(|r| r.to_string())?;
    let program = lower(&g, &Target::new(Isa::Avx512)).map_err(|r| r.to_string())?;
    verify_program(&program).map_err(|r| r.to_string())?;
    let x = e.tensors(1).map_err(|e| e.to_string())?;
    let want = run(&g, &x, &Env::default()).map_err(|e| e.to_string())?;
    let got = eval_program(&program, &x).map_err(|e| e.to_string())?;
    got.iter().zip(&want).try_for_each(|(g, w)| compare(g, w))
}

#[test]
fn lowered_programs_compute_what_the_interpreter_does() {
    let wrong: Vec<String> = examples().iter().filter_map(|e| check(e).err().map(|m| format!("{}: {m}", e.name))).collect();
    assert!(wrong.is_empty(), "{} examples:\n{}", wrong.len(), wrong.join("\n"));
}
