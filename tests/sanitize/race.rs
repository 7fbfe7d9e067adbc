//! A data race, for scripts/tsan.sh to see that the thread sanitizer reports one.

static mut COUNT: u64 = 0;

fn main() {
    let add = || unsafe { COUNT += 1 };
    let thread = std::thread::spawn(add);
    add();
    thread.join().expect("no panic");
}
