//! What only a GPU can show: that it computes what the CPU does, and that streams, graphs and memory hold up. Where there
//! is no CUDA device, each test says that it was skipped, and passes. Run alone: `make test-cuda`.
//!
//! In f32 the GPU's sampling computes in f32 (no TF32). Training takes libtorch's defaults, TF32 convolutions among them.

use std::io::Write;
use std::time::Duration;

use diffusion::checkpoint::SchedulerConfig;
use diffusion::engine::{Engine, JobState, SampleRequest};
use diffusion::graphs::NoCapture;
use diffusion::noise::{device as noise_on_device, Domain, Stream};
use diffusion::pixels::Format;
use diffusion::process::{DeviceChoice, DiffusionProcess, InferencePrecision, ProcessConfig, Weights};
use diffusion::sampler::SamplerParams;
use diffusion::torch::cuda::{current_stream, download, upload, CudaCapture};
use diffusion::torch::{cuda_device_count, use_own_stream, LowPrecision};
use diffusion::training::{Precision, TrainingConfig};
use diffusion::unet::{Batches, GpuModel, Parameters, UnetConfig, MAX_GRAPHS};
use diffusion::Error;
use tch::{Device, Kind, Tensor};

const GPU: Device = Device::Cuda(0);

/// Whether there is a device; where not, says so past the test harness, which keeps quiet about tests that pass.
fn have_cuda(test: &str) -> bool {
    let found = cuda_device_count() > 0;
    if !found {
        let _ = writeln!(std::io::stderr(), "SKIPPED for want of a CUDA device: {test}");
    }
    found
}

fn config(device: DeviceChoice, training: TrainingConfig) -> ProcessConfig {
    ProcessConfig {
        unet: UnetConfig::from_hidden_dims(16, 3, &[32, 64]).unwrap(),
        scheduler: SchedulerConfig::default(),
        training,
        device,
        num_threads: 0,
        max_batch: 0,
        seed: 11,
        inference_precision: InferencePrecision::F32,
        deterministic: false,
    }
}

fn process(device: DeviceChoice) -> DiffusionProcess {
    DiffusionProcess::new(config(device, TrainingConfig::default())).unwrap()
}

fn streams(count: u64) -> Vec<Stream> {
    (0..count).map(|image| Stream::new(Domain::Sample, 7, image)).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn images(count: usize) -> Vec<f32> {
    (0..count * 3 * 16 * 16).map(|i| (i as f32 * 0.37).sin()).collect()
}

#[test]
fn noise_made_on_the_device_is_the_hosts() {
    if !have_cuda("noise_made_on_the_device_is_the_hosts") {
        return;
    }
    for (count, each) in [(1, 3072), (64, 3072), (3, 5)] {
        let streams = streams(count);
        let host = noise_on_device::normal(&streams, 3, each, Device::Cpu).unwrap();
        let found = noise_on_device::normal_on(&streams, 3, each, GPU).unwrap();
        let difference = (found.to_device(Device::Cpu) - host).abs().max().double_value(&[]);
        println!("{count} x {each}: {difference:e}");
        assert!(difference <= 1e-6, "{difference:e}");
    }
}

#[test]
fn copies_there_and_back_keep_every_value() {
    if !have_cuda("copies_there_and_back_keep_every_value") {
        return;
    }
    use_own_stream(0).unwrap();
    let values: Vec<f32> = (0..1 << 20).map(|i| i as f32).collect();
    // Many at once, so that page-locked memory is used again while copies are under way.
    let there: Vec<Tensor> = (0..32).map(|_| upload(&values, &[1 << 10, 1 << 10], GPU).unwrap()).collect();
    for tensor in &there {
        let mut back = vec![0f32; values.len()];
        download(&tensor.transpose(0, 1).contiguous().transpose(0, 1), &mut back).unwrap();
        assert!(back == values);
    }
}

#[test]
fn samples_are_the_cpus() {
    if !have_cuda("samples_are_the_cpus") {
        return;
    }
    let (cpu, gpu) = (process(DeviceChoice::Cpu), process(DeviceChoice::Cuda(0)));
    for (name, params) in [
        ("DDIM", SamplerParams::ddim(10, 0.0)),
        ("DDIM, eta 1", SamplerParams::ddim(10, 1.0)),
        ("DDPM", SamplerParams::ddpm(1000)),
    ] {
        let (wanted, found) = (
            cpu.sample(&params, &streams(4), None).unwrap(),
            gpu.sample(&params, &streams(4), None).unwrap(),
        );
        let difference = worst(&wanted, &found);
        println!("{name}: {difference:e}");
        assert!(difference < 2e-3, "{name}: {difference:e}");
    }
}

#[test]
fn an_image_is_the_same_in_any_batch() {
    if !have_cuda("an_image_is_the_same_in_any_batch") {
        return;
    }
    let process = process(DeviceChoice::Cuda(0));
    let (params, all) = (SamplerParams::ddim(8, 0.5), streams(37));
    let whole = process.sample(&params, &all, None).unwrap();
    let each = process.config().image_len();
    for batch in [1, 2, 5, 6, 16, 33] {
        let part = process.sample(&params, &all[..batch], None).unwrap();
        let difference = worst(&part, &whole[..batch * each]);
        println!("{batch}: {difference:e}");
        assert!(difference < 1e-4, "{batch} of 37: {difference:e}");
    }
}

#[test]
fn a_replayed_graph_computes_what_it_was_captured_from() {
    if !have_cuda("a_replayed_graph_computes_what_it_was_captured_from") {
        return;
    }
    let _no_grad = tch::no_grad_guard();
    use_own_stream(0).unwrap();
    let config = UnetConfig::from_hidden_dims(16, 3, &[32, 64]).unwrap();
    let parameters = Parameters::init(&config, 1, GPU).unwrap();
    for (precision, tolerance) in
        [(None, 1e-4), (Some(LowPrecision::Bf16), 3e-2), (Some(LowPrecision::F16), 1e-2)]
    {
        let captures = CudaCapture::new(GPU).expect("this thread has a stream of its own");
        let mut graphs = GpuModel::new(&config, GPU, precision, Batches::UpTo(64), Some(captures)).unwrap();
        let mut eager = GpuModel::new(&config, GPU, precision, Batches::UpTo(64), None::<NoCapture>).unwrap();
        let mut step = |batch: i64, round: i64| {
            let x = Tensor::arange(batch * 768, (Kind::Float, Device::Cpu)) * 0.1 + round;
            let x = x.sin().view([batch, 3, 16, 16]).to_device(GPU);
            let timesteps: Vec<f64> = (0..batch).map(|i| ((i * 97 + round * 13) % 1000) as f64).collect();
            let wanted = eager.forward(&parameters, &x, &timesteps, None).unwrap();
            let found = graphs.forward(&parameters, &x, &timesteps, None).unwrap();
            let difference = (found - wanted).abs().max().double_value(&[]);
            assert!(difference < tolerance, "{batch} in {precision:?}, round {round}: {difference:e}");
        };
        // More sizes than graphs, in turn, so that some are captured again; sizes that fill their bucket and not.
        for round in 0..3 {
            for batch in [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 31, 32] {
                step(batch, round);
                step(batch, round + 10);
            }
        }
        assert_eq!(graphs.take_notes(), Vec::<String>::new(), "a capture failed");
        assert_eq!(graphs.graphs(), MAX_GRAPHS);
    }
}

#[test]
fn new_weights_are_sampled_from() {
    if !have_cuda("new_weights_are_sampled_from") {
        return;
    }
    let (mut cpu, mut gpu) = (process(DeviceChoice::Cpu), process(DeviceChoice::Cuda(0)));
    let params = SamplerParams::ddim(6, 0.0);
    let before = gpu.sample(&params, &streams(2), None).unwrap();
    for process in [&mut cpu, &mut gpu] {
        let name = "conv_in.weight";
        let values = process.read_parameter(Weights::Trained, name).unwrap();
        let values: Vec<f32> = values.iter().map(|value| value * -1.5).collect();
        process.write_parameter(Weights::Trained, name, &values).unwrap();
    }
    let found = gpu.sample(&params, &streams(2), None).unwrap();
    assert!(worst(&before, &found) > 1e-2, "the weights made no difference");
    assert!(worst(&cpu.sample(&params, &streams(2), None).unwrap(), &found) < 2e-3);
}

#[test]
fn fewer_bits_stay_near_f32() {
    if !have_cuda("fewer_bits_stay_near_f32") {
        return;
    }
    let _no_grad = tch::no_grad_guard();
    let config = UnetConfig::from_hidden_dims(32, 3, &[64, 128, 128]).unwrap();
    let parameters = Parameters::init(&config, 1, GPU).unwrap();
    let x = Tensor::arange(8 * 3072, (Kind::Float, GPU)).sin().view([8, 3, 32, 32]);
    let answer = |precision| {
        let mut model = GpuModel::new(&config, GPU, precision, Batches::UpTo(64), None::<NoCapture>).unwrap();
        model.forward(&parameters, &x, &[10.0; 8], None).unwrap()
    };
    let exact = answer(None);
    let scale = exact.abs().max().double_value(&[]);
    for (precision, tolerance) in [(LowPrecision::Bf16, 6e-2), (LowPrecision::F16, 1e-2)] {
        let difference = (answer(Some(precision)) - &exact).abs().max().double_value(&[]) / scale;
        println!("{precision:?}: {difference:e}");
        assert!(difference < tolerance, "{precision:?}: {difference:e}");
    }
}

#[test]
fn training_is_the_cpus_and_the_loss_may_stay_unasked() {
    if !have_cuda("training_is_the_cpus_and_the_loss_may_stay_unasked") {
        return;
    }
    for (precision, tolerance) in [(Precision::F32, 5e-3), (Precision::Bf16, 5e-2), (Precision::F16, 2e-2)] {
        let training = TrainingConfig {
            mixed_precision: precision,
            gradient_clip: 1.0,
            ema_decay: 0.9,
            min_snr_gamma: 5.0,
            ..TrainingConfig::default()
        };
        let plain = TrainingConfig { mixed_precision: Precision::F32, ..training.clone() };
        let mut cpu = DiffusionProcess::new(config(DeviceChoice::Cpu, plain)).unwrap();
        let on_gpu = || DiffusionProcess::new(config(DeviceChoice::Cuda(0), training.clone())).unwrap();
        let (mut asked, mut unasked) = (on_gpu(), on_gpu());
        let step = |process: &mut DiffusionProcess, want_loss| {
            process.train_step(&images(8), None, want_loss, &|| false).unwrap()
        };
        for call in 0..6 {
            let wanted = step(&mut cpu, true).unwrap();
            let found = step(&mut asked, true).unwrap();
            assert_eq!(step(&mut unasked, false), None, "a loss was waited for");
            println!("{precision:?}, call {call}: {found} on the GPU, {wanted} on the CPU");
            assert!((found - wanted).abs() < tolerance * wanted.abs().max(1.0), "{precision:?}, call {call}");
        }
        for name in ["conv_in.weight", "conv_out.bias"] {
            let [a, b] = [&asked, &unasked].map(|p| p.read_parameter(Weights::Trained, name).unwrap());
            // Backward convolutions may add in another order each time; six steps of 1e-4 go no further than 6e-4.
            assert!(worst(&a, &b) < 1e-4, "{name} in {precision:?}");
        }
    }
}

#[test]
fn running_out_of_memory_is_an_error_and_the_process_goes_on() {
    if !have_cuda("running_out_of_memory_is_an_error_and_the_process_goes_on") {
        return;
    }
    let mut config = config(DeviceChoice::Cuda(0), TrainingConfig::default());
    config.unet = UnetConfig::from_hidden_dims(32, 3, &[128, 128]).unwrap();
    let each = config.image_len();
    let mut process = DiffusionProcess::new(config).unwrap();
    let params = SamplerParams::ddim(4, 0.0);
    let before = process.sample(&params, &streams(2), None).unwrap();
    // Backpropagation keeps some 15 MB of each image: a quarter of a terabyte.
    let many = vec![0.5f32; (1 << 14) * each];
    for _ in 0..2 {
        match process.train_step(&many, None, true, &|| false) {
            Err(Error::OutOfMemory(text)) => println!("{text}"),
            other => panic!("{other:?}"),
        }
    }
    let after = process.sample(&params, &streams(2), None).unwrap();
    assert!(worst(&before, &after) < 1e-5, "the weights have changed");
    process.train_step(&many[..2 * each], None, true, &|| false).unwrap();
}

#[test]
fn each_process_has_a_stream_and_the_hosts_thread_keeps_its_own() {
    if !have_cuda("each_process_has_a_stream_and_the_hosts_thread_keeps_its_own") {
        return;
    }
    let hosts = current_stream(0).unwrap();
    let wanted = process_images();
    let barrier = std::sync::Barrier::new(4);
    let found: Vec<(usize, Vec<f32>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let process = process(DeviceChoice::Cuda(0));
                    let stream = current_stream(0).unwrap();
                    // All capture at about the same time.
                    barrier.wait();
                    (stream, process.sample(&SamplerParams::ddim(20, 0.0), &streams(3), None).unwrap())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (i, (stream, images)) in found.iter().enumerate() {
        assert_ne!(*stream, hosts);
        assert!(found[..i].iter().all(|(other, _)| other != stream), "two processes share a stream");
        assert!(worst(images, &wanted) < 1e-5, "process {i} made other images");
    }
    assert_eq!(current_stream(0).unwrap(), hosts);
}

/// Made on a thread of its own, so that the caller's stays as it is.
fn process_images() -> Vec<f32> {
    let made = std::thread::spawn(|| {
        process(DeviceChoice::Cuda(0)).sample(&SamplerParams::ddim(20, 0.0), &streams(3), None).unwrap()
    });
    made.join().unwrap()
}

#[test]
fn requests_that_come_and_go_get_the_images_they_would_have_alone() {
    if !have_cuda("requests_that_come_and_go_get_the_images_they_would_have_alone") {
        return;
    }
    let engine = Engine::start(|| Ok(process(DeviceChoice::Cuda(0)))).unwrap();
    let alone: Vec<Vec<u8>> = (0..6).map(|i| finished(&engine, 1 + i % 4, i as u64)).collect();
    let together: Vec<_> = (0..6).map(|i| engine.submit(request(12, 1 + i % 4, i as u64)).unwrap()).collect();
    for (job, alone) in together.iter().zip(&alone) {
        job.wait(None).unwrap();
        assert!(worst(&floats(&job.encoded().unwrap()), &floats(alone)) < 1e-4);
    }
}

fn finished(engine: &Engine, count: usize, seed: u64) -> Vec<u8> {
    let job = engine.submit(request(12, count, seed)).unwrap();
    job.wait(None).unwrap();
    job.encoded().unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn request(steps: usize, num_samples: usize, seed: u64) -> SampleRequest {
    SampleRequest {
        sampler: SamplerParams::ddim(steps, 0.0),
        num_samples,
        seed,
        seeds: Vec::new(),
        class_labels: Vec::new(),
        initial_noise: None,
        format: Format::F32,
        timeout: None,
        progress: None,
    }
}

#[test]
fn a_process_can_be_destroyed_in_the_middle_of_a_job() {
    if !have_cuda("a_process_can_be_destroyed_in_the_middle_of_a_job") {
        return;
    }
    for round in 0..4 {
        let engine = Engine::start(|| Ok(process(DeviceChoice::Cuda(0)))).unwrap();
        let job = engine.submit(request(1000, 16, round)).unwrap();
        // Let it get as far as graphs, in some rounds.
        while round > 0 && job.done() < round * 64 && job.state() != JobState::Done {
            std::thread::sleep(Duration::from_millis(1));
        }
        engine.stop();
        match job.wait(None) {
            Ok(()) => println!("round {round}: the job was faster"),
            Err(error) => assert!(matches!(error, Error::Cancelled(_)), "{error:?}"),
        }
    }
    // Streams and memory of those are there for the next.
    let engine = Engine::start(|| Ok(process(DeviceChoice::Cuda(0)))).unwrap();
    assert_eq!(finished(&engine, 2, 1).len(), 2 * 768 * 4);
}
