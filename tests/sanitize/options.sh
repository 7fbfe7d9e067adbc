# Sourced by what runs instrumented programs.
#
# libtorch is not instrumented: the address sanitizer's marks in a std::vector that grew in our code are not kept by libtorch's, so
# that check would report what is none. A request for more memory than there is must fail as it does without sanitizers.
export ASAN_OPTIONS=detect_container_overflow=0:allocator_may_return_null=1:detect_leaks=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1
export OMP_WAIT_POLICY=passive
