//! The clock of the benches: time by the wall, and by the processor, which other programs on the machine disturb less.

use std::time::Instant;

/// Time by the wall and by all of the process's threads.
pub struct Clock(Instant, f64);

impl Clock {
    pub fn start() -> Self {
        Clock(Instant::now(), busy_seconds())
    }

    pub fn seconds(&self) -> (f64, f64) {
        (self.0.elapsed().as_secs_f64(), busy_seconds() - self.1)
    }
}

fn busy_seconds() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let busy = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    busy.sum::<f64>() / 1e9
}

/// The least and the median of such times.
pub fn text(times: &[(f64, f64)]) -> String {
    let sorted = |which: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = times.iter().map(which).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (wall, busy) = (sorted(|t| t.0), sorted(|t| t.1));
    let middle = wall.len() / 2;
    format!("{:.3} s (median {:.3}; processor {:.3}, {:.3})", wall[0], wall[middle], busy[0], busy[middle])
}
