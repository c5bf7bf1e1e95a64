//! Programs and kernels as bytes: what each is made of, in the order it is written.

use super::bytes::{Coded, Reader, coded, damaged};
use nnc_backends::gpu::gir::{
    self, Binary, Carried, Compare, Convert, Elem, Fold, Joined, Kernel as DeviceCode, Shared, Space, Stmt as DeviceStmt, Ty, Unary, Val, Words,
};
use nnc_backends::gpu::plan::{DeviceKernel, Placed, implementation};
use nnc_ir::error::Loc;
use nnc_ir::kernel::{
    Access, Buffer, BufferId, BufferRef, Decode, Expr, ExprId, Fault, Kernel, Launch, Param, Place, Port, Program, Step, Stmt, VarId,
};
use nnc_ir::ops::image::Channels;
use nnc_ir::target::Cooperative;
use nnc_ir::{Result, Type};
use std::sync::Arc;

/// Numbers with a name.
macro_rules! index {
    ($($name:ident),*) => {
        $(impl Coded for $name {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }

            fn get(r: &mut Reader) -> Result<$name> {
                u32::get(r).map($name)
            }
        })*
    };
}

index!(ExprId, VarId, BufferId, Val);

coded!(enum Loc { 0 = Unknown, 1 = Text { file, line, col }, 2 = Onnx { file, index, name, op, opset } });
coded!(struct Type { dtype, shape });

coded!(enum Expr {
    0 = Const(value, dtype),
    1 = Size(i),
    2 = Var(v),
    3 = Load { buf, index },
    4 = Map { fun, args },
    5 = Cast { to, arg },
});
coded!(enum Stmt {
    0 = For { var, lo, hi, body },
    1 = While { cond, body },
    2 = If { cond, then, otherwise },
    3 = Set { var, value },
    4 = Store { buf, index, value },
    5 = Break,
    6 = Fail(fault),
});
coded!(enum Fault { 0 = Index, 1 = Size });
coded!(enum Access { 0 = Read, 1 = Write, 2 = ReadWrite });
coded!(struct Param { dtype, access, elems });

impl Coded for Kernel {
    /// The operation that it computes is left out: what was chosen for it stands in the file.
    fn put(&self, out: &mut Vec<u8>) {
        let Kernel { name, params, sizes, vars, exprs, tasks, task, body, origin: _ } = self;
        name.put(out);
        params.put(out);
        sizes.put(out);
        vars.put(out);
        exprs.put(out);
        tasks.put(out);
        task.put(out);
        body.put(out);
    }

    fn get(r: &mut Reader) -> Result<Kernel> {
        Ok(Kernel {
            name: Coded::get(r)?,
            params: Coded::get(r)?,
            sizes: Coded::get(r)?,
            vars: Coded::get(r)?,
            exprs: Coded::get(r)?,
            tasks: Coded::get(r)?,
            task: Coded::get(r)?,
            body: Coded::get(r)?,
            origin: None,
        })
    }
}

coded!(enum Place {
    0 = Input(i),
    1 = Output(i),
    2 = Weight { offset },
    3 = Unplanned,
    4 = Work { offset },
    5 = Heap { slot },
});
coded!(struct Buffer { dtype, elems, place });
coded!(struct BufferRef { buffer, offset });
coded!(enum Step {
    0 = Launch(launch),
    1 = Bind { symbol, from },
    2 = Check { a, b, at_most, what },
    3 = If { cond, then, otherwise },
    4 = While { cond, body },
    5 = Decode(decode),
});
coded!(enum Channels { 0 = Rgb, 1 = Bgr, 2 = Grayscale });
coded!(struct Decode { file, bytes, channels, sizes, samples });
coded!(struct Launch { kernel, buffers, sizes, flops, name, loc });
coded!(struct Port { name, ty, buffer });

impl Coded for Program {
    /// Without the weights, which stand behind everything else.
    fn put(&self, out: &mut Vec<u8>) {
        let Program { name, inputs, outputs, buffers, kernels, steps, weights: _, workspace, heap, flops } = self;
        name.put(out);
        inputs.put(out);
        outputs.put(out);
        buffers.put(out);
        kernels.put(out);
        steps.put(out);
        workspace.put(out);
        heap.put(out);
        flops.put(out);
    }

    fn get(r: &mut Reader) -> Result<Program> {
        Ok(Program {
            name: Coded::get(r)?,
            inputs: Coded::get(r)?,
            outputs: Coded::get(r)?,
            buffers: Coded::get(r)?,
            kernels: Coded::get(r)?,
            steps: Coded::get(r)?,
            weights: vec![],
            workspace: Coded::get(r)?,
            heap: Coded::get(r)?,
            flops: Coded::get(r)?,
        })
    }
}

coded!(enum Ty { 0 = Bool, 1 = I32, 2 = I64, 3 = F32, 4 = F64, 5 = Left, 6 = Right, 7 = Sums });
coded!(enum Elem { 0 = I8, 1 = U8, 2 = I16, 3 = U16, 4 = I32, 5 = I64, 6 = F32, 7 = F64 });
coded!(enum Unary { 0 = Neg, 1 = Abs, 2 = Sqrt, 3 = Floor, 4 = Ceil, 5 = Round, 6 = Trunc, 7 = Not });
coded!(enum Binary {
    0 = Add,
    1 = Sub,
    2 = Mul,
    3 = Div,
    4 = DivS,
    5 = DivU,
    6 = RemS,
    7 = RemU,
    8 = And,
    9 = Or,
    10 = Xor,
    11 = Shl,
    12 = ShrS,
    13 = ShrU,
});
coded!(enum Compare { 0 = Eq, 1 = Ne, 2 = Lt, 3 = Le, 4 = LtU, 5 = LeU });
coded!(enum Convert {
    0 = ExtendS,
    1 = ExtendU,
    2 = Low,
    3 = FromBool,
    4 = FloatS,
    5 = FloatU,
    6 = IntS,
    7 = IntU,
    8 = Resize,
    9 = Bits,
});
coded!(enum Fold { 0 = Add, 1 = Max, 2 = Min });
coded!(enum Words { 0 = Bf16, 1 = Tf32, 2 = F16 });
coded!(enum Space { 0 = Global(i), 1 = Shared(i) });

type DeviceOp = gir::Op;
coded!(enum DeviceOp {
    0 = Const(ty, bits),
    1 = Scalar(i),
    2 = Thread,
    3 = Group,
    4 = Groups,
    5 = Lane,
    6 = Lanes,
    7 = Unary(op, a),
    8 = Binary(op, a, b),
    9 = MulAdd(a, b, c),
    10 = Compare(op, a, b),
    11 = Select(c, a, b),
    12 = Convert(op, ty, a),
    13 = Load { from, index },
    14 = SubgroupFold(op, a),
    15 = SubgroupXor(a, mask),
    16 = Pair(words, a, b),
    17 = Tf32(a),
    18 = Subgroup,
    19 = LoadMatrix { matrix, from, index, pitch },
});
coded!(struct Carried { value, first, next });
coded!(struct Joined { value, then, otherwise });
coded!(enum DeviceStmt {
    0 = Let(v, op),
    1 = Store { to, index, value },
    2 = If { cond, then, otherwise, joined },
    3 = For { index, lo, hi, carried, body },
    4 = While { carried, head, cond, body },
    5 = Barrier,
    6 = LoadMatrices { values, from, index },
    7 = MultiplyMatrices { words, values, a, b, c },
    8 = Copy { to, at, from, index, bytes, inside },
    9 = CloseCopies,
    10 = AwaitCopies { pending },
    11 = LoadVector { values, from, index },
    12 = StoreVector { to, index, values },
    13 = StoreMatrix { to, index, pitch, value },
});

type DeviceBuffer = gir::Buffer;
coded!(struct DeviceBuffer { elem, written });
coded!(struct Shared { elem, len });
coded!(struct Cooperative { rows, columns, depth, lanes });
coded!(struct DeviceCode { name, threads, buffers, scalars, shared, cooperative, types, body });

impl Coded for Placed {
    /// What refused is of interest when a model is compiled, and not written.
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Placed::Host(_) => out.push(0),
            Placed::Device(d) => {
                let DeviceKernel { kernel, implementation, refused: _, fails, offsets, groups, scalars } = &**d;
                out.push(1);
                kernel.put(out);
                Arc::<str>::from(*implementation).put(out);
                fails.put(out);
                offsets.put(out);
                groups.put(out);
                scalars.put(out);
            }
        }
    }

    fn get(r: &mut Reader) -> Result<Placed> {
        match r.byte()? {
            0 => Ok(Placed::Host(vec![])),
            1 => Ok(Placed::Device(Box::new(DeviceKernel {
                kernel: Coded::get(r)?,
                implementation: {
                    let name = Arc::<str>::get(r)?;
                    implementation(&name).ok_or_else(|| damaged(format!("{name:?} is no implementation of a kernel")))?
                },
                refused: vec![],
                fails: Coded::get(r)?,
                offsets: Coded::get(r)?,
                groups: Coded::get(r)?,
                scalars: Coded::get(r)?,
            }))),
            other => Err(damaged(format!("{other} is no place of a kernel"))),
        }
    }
}
