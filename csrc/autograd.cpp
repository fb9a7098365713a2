// The Python module semimatch_kernels._C_autograd: semimatch_kernels/autograd.py's formula of a differentiable op, in
// C++. Autograd written in Python is much of what a small call costs the host (benchmarks.host_overhead).
//
// PyTorch's stable ABI has no autograd, so this one file uses its C++ interface and runs with the very torch that it
// was built against. It knows no op: `differentiate` is told the rule of each. Where it is absent, or torch is another,
// the formula in Python runs, with the same results.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/FuncTorchTLS.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using c10::IValue;
using c10::OperatorHandle;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

// What an argument of the op is to autograd.
enum class Kind { tensor, tensors, constant };

// One differentiable op: schemas.Op, looked up in the dispatcher.
struct Rule {
  OperatorHandle backward;
  std::string name;     // as profiles, graphs and errors of autograd show it
  std::string refusal;  // what a transform of torch.func is told
  std::vector<Kind> kinds;
  std::vector<size_t> inputs, outputs, saved;
};

// Calls `visit` with each tensor of an argument that is one, several, or (optional) none.
template <class Visit>
void each_tensor(const IValue& value, Kind kind, Visit visit) {
  if (kind == Kind::tensor) {
    visit(value.isNone() ? Tensor() : value.toTensor());
  } else if (kind == Kind::tensors) {
    for (const Tensor& tensor : value.toTensorVector()) {
      visit(tensor);
    }
  }
}

// The gradient of any op. Its rule and the arguments that are no tensors lie in the context under `CALL`, as one list:
// compiled autograd takes what is in a list for constants.
const char* const CALL = "call";

struct Formula {
  static constexpr bool is_traceable = true;

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const c10::List<IValue> call = context->saved_data.at(CALL).toList();
    const Rule& rule = *reinterpret_cast<const Rule*>(call.get(0).toInt());
    const variable_list saved = context->get_saved_variables();
    size_t next = 0;
    Stack stack;
    for (size_t i = 0; i < rule.kinds.size(); ++i) {
      IValue held = call.get(i + 1);
      if (rule.kinds[i] == Kind::tensor) {
        const Tensor& tensor = saved[next++];
        held = tensor.defined() ? IValue(tensor) : IValue();
      } else if (rule.kinds[i] == Kind::tensors) {
        const auto begin = saved.begin() + next, end = begin + held.toInt();
        held = variable_list(begin, end);
        next += end - begin;
      }
      stack.push_back(std::move(held));
    }
    bool wanted = false;
    for (; next < saved.size(); ++next) {
      stack.emplace_back(saved[next]);
    }
    for (const Tensor& grad : grads) {
      wanted |= grad.defined();
      stack.push_back(grad.defined() ? IValue(grad) : IValue());
    }
    if (!wanted) {
      return variable_list(saved.size());  // none for any input; CppNode takes no offence at more of them
    }
    // With create_graph the result may be differentiated, which the op's own Autograd kernel refuses.
    if (at::GradMode::is_enabled()) {
      rule.backward.callBoxed(stack);
    } else {
      at::AutoDispatchBelowADInplaceOrView guard;
      rule.backward.callBoxed(stack);
    }
    variable_list by_input;
    for (const IValue& result : stack) {
      each_tensor(result, result.isTensor() ? Kind::tensor : Kind::tensors,
                  [&](const Tensor& grad) { by_input.push_back(grad); });
    }
    return by_input;
  }
};

// PyTorch's node for functions in C++, under the name of the op.
struct Backward final : torch::autograd::CppNode<Formula> {
  explicit Backward(const Rule& of) : rule(of) {}
  std::string name() const override { return rule.name + "Backward"; }
  const Rule& rule;
};

// Nodes are held by std::shared_ptr in older versions of torch, by intrusive pointers in later ones.
template <class Pointer = decltype(torch::autograd::Edge::function)>
auto new_backward(const Rule& rule) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::shared_ptr<Backward>(new Backward(rule), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Backward>(rule);
  }
}

// What torch.autograd.graph.node_creation_hook asks for, where torch has it.
template <class Node>
void announce(const Node& node) {
  if constexpr (requires { fire_node_creation_hooks(node); }) {
    fire_node_creation_hooks(node);
  }
}

// Fails with `refusal` under a transform of torch.func.
void check_no_transform(const std::string& refusal) {
  if (const auto& functorch = at::functorch::functorchTLSAccessor()) {
    try {  // the header that tells whether one is active needs another that no torch comes with
      functorch->checkSupportsCppAutogradFunction();
    } catch (const c10::Error&) {
      TORCH_CHECK(false, refusal);
    }
  }
}

// The Autograd kernel of one op.
class Differentiable final : public c10::OperatorKernel {
 public:
  explicit Differentiable(Rule rule) : rule_(std::move(rule)) {}

  void operator()(const OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    const size_t first = stack->size() - rule_.kinds.size();
    variable_list leaves;
    if (at::GradMode::is_enabled()) {
      for (const size_t i : rule_.inputs) {
        each_tensor((*stack)[first + i], rule_.kinds[i], [&](const Tensor& leaf) { leaves.push_back(leaf); });
      }
    }
    if (!torch::autograd::any_variable_requires_grad(leaves)) {
      return below(op, keys, stack);
    }
    check_no_transform(rule_.refusal);
    for (const Tensor& leaf : leaves) {
      TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(leaf),
                                  "semimatch_kernels: forward-mode AD through ", rule_.name, " is not supported");
    }
    const auto node = new_backward(rule_);
    node->set_ctx_grad_fn(node);
    node->set_next_edges(torch::autograd::collect_next_edges(leaves));
    node->is_variable_input_.assign(leaves.size(), true);
    c10::List<IValue> call(c10::AnyType::get());
    variable_list saved;
    call.push_back(reinterpret_cast<int64_t>(&rule_));
    for (size_t i = 0; i < rule_.kinds.size(); ++i) {
      const IValue& argument = (*stack)[first + i];
      each_tensor(argument, rule_.kinds[i], [&](const Tensor& tensor) { saved.push_back(tensor); });
      switch (rule_.kinds[i]) {
        case Kind::tensor: call.push_back(IValue()); break;
        case Kind::tensors: call.push_back(static_cast<int64_t>(argument.toListRef().size())); break;
        case Kind::constant: call.push_back(argument); break;
      }
    }
    below(op, keys, stack);
    for (const size_t i : rule_.saved) {
      saved.push_back((*stack)[first + i].toTensor());
    }
    for (const size_t i : rule_.outputs) {
      torch::autograd::set_history((*stack)[first + i].toTensor(), node);
    }
    node->ctx_.saved_data.emplace(CALL, std::move(call));
    node->ctx_.set_materialize_grads(false);
    node->ctx_.save_for_backward(std::move(saved));
    node->save_variables_to_ctx();
    announce(node);
  }

 private:
  static void below(const OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    // Views too: a result that PyTorch takes for a view, as one that a kernel has squeezed, loses its gradient when it
    // is changed in place.
    at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  }

  const Rule rule_;
};

Kind kind_of(const c10::Argument& argument) {
  const std::string type = argument.type()->str();
  return type == "Tensor" || type == "Tensor?" ? Kind::tensor : type == "Tensor[]" ? Kind::tensors : Kind::constant;
}

// Puts the kernel of op `name` ("library::op") on its Autograd key, for as long as the process lives.
void differentiate(const std::string& name, const std::string& backward, const std::string& refusal,
                   std::vector<size_t> inputs, std::vector<size_t> outputs, std::vector<size_t> saved) {
  auto& dispatcher = c10::Dispatcher::singleton();
  const OperatorHandle op = dispatcher.findSchemaOrThrow(name.c_str(), "");
  std::vector<Kind> kinds;
  for (const c10::Argument& argument : op.schema().arguments()) {
    kinds.push_back(kind_of(argument));
  }
  std::string shown = name;
  shown.replace(shown.find("::"), 2, "_");
  auto kernel = std::make_unique<Differentiable>(
      Rule{dispatcher.findSchemaOrThrow(backward.c_str(), ""), shown, refusal, kinds, inputs, outputs, saved});
  static auto* const library = new torch::Library(torch::Library::IMPL, name.substr(0, name.find("::")),
                                                  c10::DispatchKey::Autograd, __FILE__, __LINE__);
  library->impl(name.substr(name.find("::") + 2).c_str(),
                torch::CppFunction::makeFromBoxedFunctor<Differentiable>(std::move(kernel)));
}

}  // namespace

PYBIND11_MODULE(_C_autograd, module) {
  module.doc() = "Autograd of semimatch_kernels' ops in C++, for one version of torch.";
  module.attr("torch") = SEMIMATCH_TORCH;
  module.def("differentiate", &differentiate, pybind11::arg("name"), pybind11::arg("backward"),
             pybind11::arg("refusal"), pybind11::arg("inputs"), pybind11::arg("outputs"), pybind11::arg("saved"),
             "Registers the Autograd kernel of an op; the positions are those of schemas.Op.");
}
