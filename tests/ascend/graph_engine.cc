// CANN's graph engine (namespace ge): classes that hold nothing but what MindSpore reads back while it makes a graph.
// Only what returns an object or makes one stands here, for the caller reads and destroys it; what returns a number, a
// reference or nothing is made by emulator.py and returns 0. The signatures are those of the symbols that MindSpore's
// libraries want; CANN is built with the older std::string, so this file is.

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "trace.h"

namespace ge {
// CANN hides each object's content behind one shared pointer, which the caller's inlined destructor lets go: all that
// these need to be is that, empty.
struct Hidden {
  std::shared_ptr<void> content;
};

enum DataType : int;
enum Format : int;

class AscendString {
 public:
  AscendString() = default;
  AscendString(const char* text);
  const char* GetString() const;
  bool operator<(const AscendString& other) const;

 private:
  std::shared_ptr<std::string> text_;
};

AscendString::AscendString(const char* text) : text_(std::make_shared<std::string>(text ? text : "")) {}
const char* AscendString::GetString() const { return text_ ? text_->c_str() : ""; }
bool AscendString::operator<(const AscendString& other) const { return std::string(GetString()) < other.GetString(); }

struct Shape : Hidden {
  Shape();
  explicit Shape(const std::vector<int64_t>& sizes);
  std::vector<int64_t> GetDims() const;
};
Shape::Shape() = default;
Shape::Shape(const std::vector<int64_t>&) {}
std::vector<int64_t> Shape::GetDims() const { return {}; }

struct TensorDesc : Hidden {
  TensorDesc();
  TensorDesc(Shape shape, Format format, DataType type);
  TensorDesc(const TensorDesc& other);
  TensorDesc(TensorDesc&& other);
  void SetDataType(DataType type);
  Shape GetShape() const;
  Shape GetOriginShape() const;
};
TensorDesc::TensorDesc() = default;
TensorDesc::TensorDesc(Shape, Format, DataType type) { trace_type(type); }
TensorDesc::TensorDesc(const TensorDesc&) : Hidden() {}
TensorDesc::TensorDesc(TensorDesc&&) {}
void TensorDesc::SetDataType(DataType type) { trace_type(type); }
Shape TensorDesc::GetShape() const { return {}; }
Shape TensorDesc::GetOriginShape() const { return {}; }

struct Tensor : Hidden {
  Tensor();
  explicit Tensor(const TensorDesc& description);
  Tensor(const TensorDesc& description, const uint8_t* data, size_t size);
  TensorDesc GetTensorDesc() const;
};
Tensor::Tensor() = default;
Tensor::Tensor(const TensorDesc&) {}
Tensor::Tensor(const TensorDesc&, const uint8_t*, size_t) {}
TensorDesc Tensor::GetTensorDesc() const { return {}; }

// Which types an operator takes: said by every class of operator when it is made, and never asked.
struct TensorType : Hidden {
  TensorType(const std::initializer_list<DataType>& types);
};
TensorType::TensorType(const std::initializer_list<DataType>&) {}

struct Promote : Hidden {
  Promote(const std::initializer_list<const char*>& names);
};
Promote::Promote(const std::initializer_list<const char*>&) {}

// A node of a graph. It knows its name and type, how many outputs it was told to have, and its numbers: MindSpore sorts
// a graph's inputs by the number "index".
class Operator {
 public:
  explicit Operator(const char* type);
  explicit Operator(const std::string& type);
  Operator(const char* name, const char* type);
  Operator(const std::string& name, const std::string& type);
  Operator(const AscendString& name, const AscendString& type);
  virtual ~Operator() = default;
  std::string GetName() const;
  std::string GetOpType() const;
  unsigned GetName(AscendString& name) const;
  unsigned GetOpType(AscendString& type) const;
  void DynamicOutputRegister(const char* name, unsigned count, bool at_end);
  void DynamicOutputRegister(const char* name, unsigned count, const char* type, bool at_end);
  int GetDynamicOutputNum(const std::string& name) const;
  Operator& SetAttr(const char* name, int64_t value);
  unsigned GetAttr(const char* name, int64_t& value) const;
  TensorDesc GetOutputDesc(const std::string& name) const;
  TensorDesc GetOutputDesc(unsigned index) const;

 private:
  struct Node {
    std::string name, type;
    std::map<std::string, int> outputs;
    std::map<std::string, int64_t> numbers;
  };
  std::shared_ptr<Node> node_;
};

Operator::Operator(const std::string& name, const std::string& type) : node_(new Node{name, type, {}, {}}) {
  trace_operator(type.c_str());
}
Operator::Operator(const char* type) : Operator("", type) {}
Operator::Operator(const std::string& type) : Operator("", type) {}
Operator::Operator(const char* name, const char* type) : Operator(std::string(name), std::string(type)) {}
Operator::Operator(const AscendString& name, const AscendString& type) : Operator(name.GetString(), type.GetString()) {}
std::string Operator::GetName() const { return node_ ? node_->name : ""; }
std::string Operator::GetOpType() const { return node_ ? node_->type : ""; }
unsigned Operator::GetName(AscendString& name) const {
  name = AscendString(GetName().c_str());
  return 0;
}
unsigned Operator::GetOpType(AscendString& type) const {
  type = AscendString(GetOpType().c_str());
  return 0;
}
void Operator::DynamicOutputRegister(const char* name, unsigned count, bool) {
  if (node_) node_->outputs[name] += count;
}
void Operator::DynamicOutputRegister(const char* name, unsigned count, const char*, bool) {
  DynamicOutputRegister(name, count, true);
}
int Operator::GetDynamicOutputNum(const std::string& name) const {
  return node_ && node_->outputs.count(name) ? node_->outputs.at(name) : 0;
}
Operator& Operator::SetAttr(const char* name, int64_t value) {
  if (node_) node_->numbers[name] = value;
  return *this;
}
unsigned Operator::GetAttr(const char* name, int64_t& value) const {
  value = node_ && node_->numbers.count(name) ? node_->numbers.at(name) : 0;
  return 0;
}
TensorDesc Operator::GetOutputDesc(const std::string&) const { return {}; }
TensorDesc Operator::GetOutputDesc(unsigned) const { return {}; }

// Every type of operator exists.
struct OperatorFactory {
  static Operator CreateOperator(const char* name, const char* type);
  static Operator CreateOperator(const std::string& name, const std::string& type);
  static bool IsExistOp(const char* type);
  static bool IsExistOp(const std::string& type);
};
Operator OperatorFactory::CreateOperator(const char* name, const char* type) { return Operator(name, type); }
Operator OperatorFactory::CreateOperator(const std::string& name, const std::string& type) {
  return Operator(name, type);
}
bool OperatorFactory::IsExistOp(const char*) { return true; }
bool OperatorFactory::IsExistOp(const std::string&) { return true; }

struct GNode : Hidden {
  GNode();
};
GNode::GNode() = default;

struct Graph : Hidden {
  explicit Graph(const char* name);
  explicit Graph(const std::string& name);
  std::string GetName() const;
  std::vector<GNode> GetDirectNode() const;
};
Graph::Graph(const char*) {}
Graph::Graph(const std::string&) {}
std::string Graph::GetName() const { return ""; }
std::vector<GNode> Graph::GetDirectNode() const { return {}; }

struct GraphBuffer : Hidden {
  GraphBuffer();
  ~GraphBuffer();
};
GraphBuffer::GraphBuffer() = default;
GraphBuffer::~GraphBuffer() = default;

// A compiled graph is one of fixed shapes, and needs no memory.
struct CompiledGraphSummary {
  bool IsStatic() const;
};
bool CompiledGraphSummary::IsStatic() const { return true; }

struct Session {
  explicit Session(const std::map<std::string, std::string>& options);
  std::shared_ptr<CompiledGraphSummary> GetCompiledGraphSummary(unsigned graph);
  uint64_t number = 0;
};
Session::Session(const std::map<std::string, std::string>&) {}
std::shared_ptr<CompiledGraphSummary> Session::GetCompiledGraphSummary(unsigned) {
  return std::make_shared<CompiledGraphSummary>();
}

// Error codes and their texts, which static initialisers put into this map by inlined code.
class StatusFactory {
 public:
  static StatusFactory* Instance();

 private:
  std::map<uint32_t, std::string> texts_;
};
StatusFactory* StatusFactory::Instance() {
  static StatusFactory factory;
  return &factory;
}
}  // namespace ge
