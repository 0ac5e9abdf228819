#include "norm/cpu/norm.h"

#include "norm/cpu/over_channels.h"
#include "norm/cpu/over_positions.h"

namespace bcos::norm::cpu {

Outputs forward(const Call& call, const Inputs& inputs) {
  return call.spec.over == Over::Position ? forward_over_positions(call, inputs)
                                          : forward_over_channels(call, inputs);
}

Gradients backward(const Call& call, const Saved& saved, const Needs& needs) {
  return call.spec.over == Over::Position ? backward_over_positions(call, saved, needs)
                                          : backward_over_channels(call, saved, needs);
}

Second second(const Call& call, const Saved& saved, const at::Tensor& v, const SecondNeeds& needs) {
  return call.spec.over == Over::Position ? second_over_positions(call, saved, v, needs)
                                          : second_over_channels(call, saved, v, needs);
}

}  // namespace bcos::norm::cpu
