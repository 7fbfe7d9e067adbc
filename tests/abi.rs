//! Rust's structs are the ones that tests/c/layout.c records as released: cbindgen writes the header from the same
//! source, and a program compiled against an older header relies on the record.

use std::mem::{offset_of, size_of};

use diffusion::capi::types::{diffusion_config, diffusion_parameter, diffusion_sample_params};

/// (struct, field, offset, size) of each field, and (struct, "", 0, size) of the whole.
type Layout = Vec<(String, String, usize, usize)>;

fn recorded() -> Layout {
    let text = include_str!("c/layout.c");
    let arguments = |line: &str, name: &str| -> Option<Vec<String>> {
        let inside = line.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(");")?;
        Some(inside.split(',').map(|part| part.trim().to_owned()).collect())
    };
    let number = |text: &String| text.parse().expect("a number");
    text.lines()
        .filter_map(|line| {
            if let Some(part) = arguments(line, "SIZE") {
                return Some((part[0].clone(), String::new(), 0, number(&part[1])));
            }
            let part = arguments(line, "FIELD")?;
            Some((part[0].clone(), part[1].clone(), number(&part[2]), number(&part[3])))
        })
        .collect()
}

fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! layout {
    ($layout:ident, $name:ident: $($field:ident)*) => {
        $layout.push((stringify!($name).to_owned(), String::new(), 0, size_of::<$name>()));
        $($layout.push((
            stringify!($name).to_owned(),
            stringify!($field).to_owned(),
            offset_of!($name, $field),
            size_of_field(|value: &$name| &value.$field),
        ));)*
    };
}

#[test]
fn the_structs_are_the_released_ones() {
    let mut layout = Layout::new();
    layout!(layout, diffusion_config: struct_size image_size channels hidden_dims_len hidden_dims beta_start beta_end
        noise_steps beta_schedule prediction_type rescale_betas_zero_snr device device_index num_threads max_batch seed
        layers_per_block attention_levels attention_head_dim norm_num_groups dropout optimizer mixed_precision
        learning_rate adam_beta1 adam_beta2 adam_epsilon weight_decay gradient_clip ema_decay loss num_class_embeds
        huber_delta min_snr_gamma warmup_steps decay_steps accumulation_steps
        inference_precision deterministic);
    layout!(layout, diffusion_sample_params: struct_size method num_samples seed seeds seeds_len initial_noise
        initial_noise_len steps spacing eta variance clip_sample use_clipped_model_output format dynamic_thresholding
        timeout_ms progress user_data class_labels class_labels_len);
    layout!(layout, diffusion_parameter: struct_size rank shape len name);
    assert_eq!(layout, recorded());
}
