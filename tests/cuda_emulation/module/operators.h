// What every header of ATen/ops includes, and most of what a file of the glue includes: compiled once.

#include <ATen/Context.h>
#include <ATen/DeviceGuard.h>
#include <ATen/TensorUtils.h>
#include <ATen/core/Tensor.h>
