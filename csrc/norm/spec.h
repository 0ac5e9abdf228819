// The two descriptions that travel with the tensors of a norm: Spec, its static options, and Call, those
// options with the sizes of one call. They are checked when they are made, so that nothing below them reads
// or writes out of bounds.
#pragma once

#include <string>

#include "common/checks.h"

namespace bcos::norm {

// Which values share a mean and a variance: those of a channel, all, those of a group of channels of an
// image, or the channels at a position.
enum class Over { Batch, All, Group, Position };

// The static options of a norm. In Python it is NormSpec, one object for each layer.
struct Spec {
  Over over;
  int64_t groups;
  bool centered;
  double eps;
  at::ScalarType out_dtype;

  Spec(const std::string& over, int64_t groups, bool centered, double eps, at::ScalarType out_dtype);

  std::string over_name() const;
};

// A Spec with the sizes of the tensor that it is applied to.
struct Call {
  Spec spec;
  int64_t batch, channels, positions;
  Ints statistics_shape;  // of mean and var
  at::ScalarType dtype;   // of x
  bool given;             // mean and var come with the call and are constants
  bool frozen = false;    // the variance is a constant of this derivative

  // x is [N, C, positions ...].
  Call(const Spec& spec, const at::Tensor& x, bool given);

  // The groups of channels with statistics of their own within an image.
  int64_t groups() const { return spec.over == Over::Batch ? channels : spec.groups; }
  int64_t group_channels() const { return channels / groups(); }
  bool at_positions() const { return spec.over == Over::Position; }
  // Whether every image has statistics of its own.
  bool per_image() const { return spec.over == Over::Group; }
  // Whether dx is the same map of the gradient and of x at all positions of a channel.
  bool has_map() const { return spec.over == Over::Batch || spec.over == Over::All; }
  // The values that share one mean and one variance.
  int64_t count() const {
    return at_positions() ? channels : group_channels() * positions * (per_image() ? 1 : batch);
  }
};

}  // namespace bcos::norm
