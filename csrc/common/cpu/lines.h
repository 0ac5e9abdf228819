// Memory for the rows that a pass reads again and again, of sums and of constants.
#pragma once

#include <cstddef>
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

}  // namespace bcos::cpu
