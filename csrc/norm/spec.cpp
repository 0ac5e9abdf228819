#include "norm/spec.h"

#include <utility>

namespace bcos::norm {
namespace {

constexpr std::pair<const char*, Over> kNames[] = {
    {"batch", Over::Batch}, {"all", Over::All}, {"group", Over::Group}, {"position", Over::Position}};

Over named(const std::string& name) {
  for (const auto& [known, over] : kNames)
    if (name == known) return over;
  TORCH_CHECK_VALUE(false, "over is '", name, "', allowed: 'batch', 'all', 'group' and 'position'");
}

Ints statistics_shape(const Spec& spec, const at::Tensor& x) {
  switch (spec.over) {
    case Over::Batch:
      return {x.size(1)};
    case Over::All:
      return {1};
    case Over::Group:
      return {x.size(0), spec.groups};
    case Over::Position:
      break;
  }
  Ints shape{x.size(0)};
  for (int64_t i = 2; i < x.dim(); i++) shape.push_back(x.size(i));
  return shape;
}

}  // namespace

Spec::Spec(const std::string& over, int64_t groups, bool centered, double eps, at::ScalarType out_dtype)
    : over(named(over)), groups(groups), centered(centered), eps(eps), out_dtype(out_dtype) {
  TORCH_CHECK_VALUE(groups >= 1, "groups is ", groups, ", allowed: 1 or more");
  TORCH_CHECK_VALUE(groups == 1 || this->over == Over::Group, "groups is ", groups,
                    ", allowed: 1 unless over is 'group'");
  check_number("eps", eps, 0);
  TORCH_CHECK_TYPE(at::isFloatingType(out_dtype), "out_dtype is ", out_dtype,
                   ", allowed: a floating point dtype");
}

std::string Spec::over_name() const {
  for (const auto& [name, known] : kNames)
    if (over == known) return name;
  return "";
}

Call::Call(const Spec& spec, const at::Tensor& x, bool given)
    : spec(spec),
      batch(x.size(0)),
      channels(x.size(1)),
      positions(1),
      statistics_shape(norm::statistics_shape(spec, x)),
      dtype(x.scalar_type()),
      given(given) {
  for (int64_t i = 2; i < x.dim(); i++) positions *= x.size(i);
  TORCH_CHECK_VALUE(channels % spec.groups == 0, "groups is ", spec.groups, ", allowed: a divisor of x's ",
                    channels, " channels");
  TORCH_CHECK_VALUE(!given || spec.over == Over::Batch || spec.over == Over::All,
                    "var is given, allowed: None where over is '", spec.over_name(), "'");
}

}  // namespace bcos::norm
