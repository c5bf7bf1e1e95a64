//! Training: a step is compiled as one function whose parameters and optimiser values stay where they are; here is the loop around it.
//!
//! What a run gives depends on nothing but the text, the data and the number of threads' order of sums: batches follow from the seed and the
//! step's number, so that a run that goes on from a checkpoint ends with the bits of one that was never stopped.

mod augment;
mod checkpoint;
mod curve;
mod data;
mod export;
mod prefetch;
mod stepper;
mod tensorboard;

pub use curve::svg;
pub use export::safetensors;

use crate::options::Options;
use crate::session::Session;
use data::{Batches, Samples};
use nnc_frontend::nn::train::{LOSS, Length, Plan, STEP, Source, Training, phase_loss};
use nnc_ir::{Error, Graph, Report, Result, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use stepper::Stepper;

/// What to train and how to keep it.
pub struct Run<'a> {
    pub training: &'a Training,
    /// Where the data's files are.
    pub folder: PathBuf,
    pub options: Options,
    /// Folder of checkpoints, and steps from one to the next.
    pub checkpoint: Option<(PathBuf, u64)>,
    /// Go on from the last checkpoint.
    pub resume: bool,
    /// Steps, where they are to be others than the text says.
    pub steps: Option<u64>,
    /// Where TensorBoard finds what is measured.
    pub events: Option<PathBuf>,
}

/// How far a run is.
pub struct Progress<'a> {
    /// Steps done, and to do in all.
    pub step: u64,
    pub steps: u64,
    pub loss: f64,
    /// Names and values on this batch.
    pub measures: &'a [(String, f64)],
    /// Names and means over the test set, where one was just made.
    pub test: Option<&'a [(String, f64)]>,
    /// Of this process.
    pub samples: u64,
    pub seconds: f64,
}

/// What a run leaves.
pub struct Trained {
    /// Parameters and states, by path in the training block.
    pub values: HashMap<String, Tensor>,
    /// Loss of each step.
    pub losses: Vec<f32>,
    pub test: Option<Vec<(String, f64)>>,
    pub compile_seconds: f64,
    pub seconds: f64,
}

impl Run<'_> {
    /// The step as a model: parameters, what the optimisers keep, a batch, scheduled numbers in; their successors under the same names,
    /// loss and measures out.
    pub fn step(&self) -> Result<Graph, Report> {
        let plan = self.training.plan()?;
        let samples = data::load(&plan.data, &self.folder)?;
        nnc_passes::differentiate(self.training.step(&plan, &samples.types())?.graph)
    }

    /// Trains; `watch` hears of every step.
    pub fn train(&self, watch: &mut dyn FnMut(&Progress)) -> Result<Trained, Report> {
        let plan = self.training.plan()?;
        let samples = data::load(&plan.data, &self.folder)?;
        let start = Instant::now();
        let step = self.training.step(&plan, &samples.types())?;
        let session = ready(step.graph, &self.options)?;
        let judge = plan.test.as_ref().map(|source| Judge::new(self, &plan, source)).transpose()?;
        let compile_seconds = start.elapsed().as_secs_f64();

        if (plan.data.flip || plan.data.crop > 0) && samples.tensors.first().is_none_or(|t| t.shape().len() < 3) {
            return Err(Error::input("flip and crop are of images: the first tensor's last two axes").into());
        }
        let batches = Batches::new(samples.count, &plan.data)?;
        let steps = self.steps.unwrap_or(match plan.length {
            Length::Steps(n) => n,
            Length::Epochs(n) => n * batches.per_epoch(),
        });
        let mut state = step.state;
        let mut losses: Vec<f32> = vec![];
        if let Some((folder, _)) = self.checkpoint.as_ref().filter(|_| self.resume) {
            losses = checkpoint::read(folder, &mut state)?;
        }
        let mut stepper = Stepper::new(&session, &state)?;
        let mut events = self.events.as_deref().map(tensorboard::Events::create).transpose()?;
        let measured: Vec<String> = plan.phases.iter().map(|p| phase_loss(p)).chain(plan.measures.iter().cloned()).collect();
        let begin = Instant::now();
        let first = losses.len() as u64;
        let mut test = None;
        let per_epoch = batches.per_epoch();
        std::thread::scope(|scope| -> Result<(), Report> {
            let ahead = prefetch::ahead(scope, &samples, batches, &plan.data, first..steps);
            for t in first..steps {
                let batch = ahead.recv().map_err(|_| Error::internal("the thread that gathers batches has ended"))?;
                for (name, bytes) in plan.data.names.iter().zip(&batch) {
                    stepper.fill(name, bytes)?;
                }
                for (name, schedule) in &plan.schedules {
                    stepper.number(name, schedule.at(t, steps) as f32)?;
                }
                stepper.number(STEP, (t + 1) as f32)?;
                stepper.run()?;
                let loss = stepper.result(LOSS)?;
                if !loss.is_finite() {
                    let e = Error::input(format!("the loss is {loss} at step {}", t + 1));
                    return Err(e.note("a smaller learning rate, or `clip global 1.0`, keeps it finite").into());
                }
                losses.push(loss);
                let done = t + 1;
                let ends = done == steps || done % per_epoch == 0;
                if let (true, Some(judge)) = (ends, &judge) {
                    test = Some(judge.measure(&mut stepper)?);
                }
                let measures = measured.iter().map(|m| Ok((m.clone(), f64::from(stepper.result(m)?)))).collect::<Result<Vec<_>>>()?;
                if let Some(events) = &mut events {
                    events.scalars(done, &[&[(LOSS.to_string(), f64::from(loss))], &measures[..]].concat())?;
                    if let Some(test) = test.as_ref().filter(|_| ends) {
                        let named: Vec<(String, f64)> = test.iter().map(|(name, v)| (format!("test/{name}"), *v)).collect();
                        events.scalars(done, &named)?;
                        events.flush()?;
                    }
                }
                watch(&Progress {
                    step: done,
                    steps,
                    loss: loss.into(),
                    measures: &measures,
                    test: test.as_deref().filter(|_| ends),
                    samples: (done - first) * plan.data.batch as u64,
                    seconds: begin.elapsed().as_secs_f64(),
                });
                if let Some((folder, every)) = &self.checkpoint
                    && (done % every == 0 || done == steps)
                {
                    checkpoint::write(folder, &stepper.state()?, &losses)?;
                }
            }
            Ok(())
        })?;
        let values = stepper.state()?.into_iter().filter(|(name, _)| !name.contains('$')).collect();
        Ok(Trained { values, losses, test, compile_seconds, seconds: begin.elapsed().as_secs_f64() })
    }
}

/// A step on the engine of the options. The interpreter runs what passes take gradients out of, so that is done here.
fn ready(graph: Graph, options: &Options) -> Result<Session, Report> {
    crate::build::session(nnc_passes::differentiate(graph)?, options, &mut ())
}

/// The test set, and what measures it.
struct Judge {
    session: Session,
    source: Source,
    samples: Samples,
    measures: Vec<String>,
}

impl Judge {
    fn new(run: &Run, plan: &Plan, source: &Source) -> Result<Judge, Report> {
        let samples = data::load(source, &run.folder)?;
        let step = run.training.test(plan, source, &samples.types())?;
        let session = ready(step.graph, &run.options)?;
        Ok(Judge { session, source: source.clone(), samples, measures: plan.measures.clone() })
    }

    /// Means over all samples. The last batch is filled up with samples that do not count.
    fn measure(&self, trained: &mut Stepper) -> Result<Vec<(String, f64)>> {
        let state = trained.state()?;
        let mut stepper = Stepper::new(&self.session, &state)?;
        let (n, batch) = (self.samples.count, self.source.batch);
        let mut sums = vec![0.0; self.measures.len()];
        for start in (0..n).step_by(batch) {
            let rows: Vec<usize> = (start..start + batch).map(|i| i.min(n - 1)).collect();
            for (name, tensor) in self.source.names.iter().zip(&self.samples.tensors) {
                stepper.fill(name, &data::gather(tensor, &rows))?;
            }
            // Draws that no step of training makes.
            stepper.number(STEP, -1.0 - (start / batch) as f32)?;
            stepper.run()?;
            for (name, sum) in self.measures.iter().zip(&mut sums) {
                let values = stepper.results(name)?;
                let each = values.len() / batch;
                *sum += values[..(n - start).min(batch) * each].iter().map(|v| f64::from(*v)).sum::<f64>() / each as f64;
            }
        }
        Ok(self.measures.iter().cloned().zip(sums.into_iter().map(|s| s / n as f64)).collect())
    }
}

/// The folder that a text's data is looked for in: its own.
pub fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf()
}
