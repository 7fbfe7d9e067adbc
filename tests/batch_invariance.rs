//! An image does not depend on the batch that it is computed in: on the CPU bit for bit, for one thread and for two.
//! Continuous batching rests on this: whom a request is merged with must not show.

use diffusion::unet::{DiffusionModel, Parameters, UnetConfig};
use tch::{Device, Kind, Tensor};

#[test]
fn an_image_is_the_same_in_any_batch() {
    let _no_grad = tch::no_grad_guard();
    for threads in [1, 2] {
        tch::set_num_threads(threads);
        // The last one has 4 tokens and one token where it has attention: less than a tile of rows.
        for (size, dims) in [(8, vec![8, 16]), (16, vec![32, 64, 64]), (4, vec![16, 16, 16])] {
            let config = UnetConfig::from_hidden_dims(size, 3, &dims).unwrap();
            let parameters = Parameters::init(&config, 1, Device::Cpu).unwrap();
            let model = DiffusionModel::new(&config, &parameters).unwrap();
            let all = 35;
            let shape = [all, 3, size as i64, size as i64];
            let x =
                Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).sin().view(shape);
            let timesteps = Tensor::arange(all, (Kind::Float, Device::Cpu)) * 25.0;
            let whole = model.forward(&x, &timesteps, None, None).unwrap();
            // Nor on whether the weights are those that are being trained, or have just been loaded.
            let trained = parameters.deep_copy().unwrap();
            trained.set_requires_grad(true).unwrap();
            let again =
                DiffusionModel::new(&config, &trained).unwrap().forward(&x, &timesteps, None, None).unwrap();
            assert!(whole.equal(&again), "{dims:?}, {threads} threads, weights that require gradients");
            for batch in [1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 32] {
                let (first, rows) = (all - batch, timesteps.narrow(0, all - batch, batch));
                let part = model.forward(&x.narrow(0, first, batch), &rows, None, None).unwrap();
                let difference = (whole.narrow(0, first, batch) - part).abs().max().double_value(&[]);
                assert_eq!(difference, 0.0, "{dims:?}, {threads} threads, the last {batch} images alone");
            }
        }
    }
}
