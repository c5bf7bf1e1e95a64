//! Batches ahead: while a step runs, another thread gathers and changes the samples of the next ones.

use super::augment::augment;
use super::data::{Batches, Samples, gather};
use nnc_frontend::nn::train::Source;
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

/// Batches that wait to be taken: several, so that short steps find one without waking anybody.
const WAITING: usize = 4;

/// The bytes of each tensor of the batches of `steps`, in their order. The thread ends with the last one, or when nobody takes them any more.
pub fn ahead<'s, 'e>(
    scope: &'s Scope<'s, 'e>,
    samples: &'e Samples,
    batches: Batches,
    source: &'e Source,
    steps: Range<u64>,
) -> Receiver<Vec<Vec<u8>>> {
    let (send, receive) = sync_channel(WAITING);
    scope.spawn(move || {
        for t in steps {
            if send.send(batch(samples, &batches.rows(t), source, t)).is_err() {
                break;
            }
        }
    });
    receive
}

/// The batch of step `t`: a function of these alone.
fn batch(samples: &Samples, rows: &[usize], source: &Source, t: u64) -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = samples.tensors.iter().map(|t| gather(t, rows)).collect();
    if let (Some(images), Some(tensor)) = (out.first_mut(), samples.tensors.first())
        && let [.., height, width] = tensor.shape()
    {
        augment(images, rows.len(), (*height, *width, tensor.dtype().bytes()), source, t);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnc_ir::Tensor;

    #[test]
    fn batches_come_in_order_and_stop_when_nobody_takes_them() {
        let names = vec!["x".into()];
        let source =
            Source { names, loader: "npy".into(), files: vec![], rows: None, batch: 2, shuffle: false, seed: 1, flip: false, crop: 0, length: 0 };
        let samples = Samples { tensors: vec![Tensor::new(&[6], &[0u8, 1, 2, 3, 4, 5])], count: 6 };
        let batches = || Batches::new(6, &source).unwrap();
        std::thread::scope(|scope| {
            let all: Vec<Vec<Vec<u8>>> = ahead(scope, &samples, batches(), &source, 1..4).iter().collect();
            assert_eq!(all, [[[2, 3]], [[4, 5]], [[0, 1]]]);
            assert_eq!(ahead(scope, &samples, batches(), &source, 0..1 << 60).recv().unwrap(), [[0, 1]]);
        });
    }
}
