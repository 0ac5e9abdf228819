// Memory for the rows that a pass reads again and again, of sums and of constants.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace bcos::cpu {

template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};  // bytes of a cache line, and of the widest vector

  LineAllocator() = default;
  template <typename Other>
  LineAllocator(const LineAllocator<Other>&) {}

  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kLine); }

  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
  friend bool operator!=(const LineAllocator&, const LineAllocator&) { return false; }
};

// A vector that starts on a cache line, as tensors do: where it does not, every wide load takes two lines.
template <typename T>
using Lines = std::vector<T, LineAllocator<T>>;

// Values that a pass writes before it reads them. Few of them lie on the stack: to make memory for them, or a
// tensor, costs more than the pass does with them.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : count_(std::size_t(count)), values_(count > kFew ? LineAllocator<T>().allocate(count_) : few_) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (values_ != few_) LineAllocator<T>().deallocate(values_, count_);
  }

  T* data() { return values_; }

 private:
  static constexpr int64_t kFew = 256;

  std::size_t count_;
  alignas(64) T few_[kFew];
  T* values_;
};

}  // namespace bcos::cpu
