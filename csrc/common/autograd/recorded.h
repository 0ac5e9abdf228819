// Calls that the extension records in autograd's graph. Their forward and backward are functions of C++, so
// that neither takes a step through Python, or such of Python (python.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace bcos {

using Tensors = std::vector<at::Tensor>;

// How calls of an op with the same options are served. Tensors stand in the order of the op's inputs and
// outputs; one that a call does not have is undefined.
struct Kernels {
  // The gradients of the inputs, undefined where `needs` is false. `map` is what grad still has to pass
  // before it is the gradient of the first output; it is undefined in most calls.
  using Backward = std::function<Tensors(const at::Tensor& grad, const Tensors& inputs, const Tensors& saved,
                                         const std::vector<bool>& needs, const at::Tensor& map)>;

  std::function<Tensors(const Tensors& inputs)> forward;
  Backward backward;
  // The same by the operators of the op: it is differentiable, and whatever must see an operator sees it.
  Backward by_operators;
  size_t inputs;      // how many there are, with those that a call does not have
  size_t outputs;     // likewise
  size_t returned;    // how many outputs a caller gets: the first is differentiable, the others are constants
  bool saves_output;  // whether the backward needs the first output
};

// Optional tensors, as the kernels take and return them, are undefined where there is none.
inline std::optional<at::Tensor> given(const at::Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}

template <typename... T>
Tensors or_undefined(const T&... tensors) {
  return {tensors.value_or(at::Tensor())...};
}

// Whether something must see the operators that are called with these tensors: a transform, a trace, a mode,
// forward-mode derivatives, or a tensor that is a subclass, a wrapper or a fake one.
bool is_followed(at::TensorList tensors);

// The outputs that a caller gets; none where the call is followed. A call that is recorded owns the kernels
// with others.
std::optional<Tensors> call(const std::shared_ptr<Kernels>& kernels, const Tensors& inputs);

// The kernels of the call that made y; null where no call did, or where a backward of it was differentiated.
std::shared_ptr<Kernels> maker_of(const at::Tensor& y);

// Whether a hook sees the gradient of y, be it of y itself or of the node that made y.
bool has_hooks(const at::Tensor& y);

// Leaves a map with the call that made y: `grad` must arrive there, or the backward fails with this message.
void leave(const at::Tensor& y, const at::Tensor& grad, const at::Tensor& map, const std::string& message);

}  // namespace bcos
