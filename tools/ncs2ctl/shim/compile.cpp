// Drives the vendor's compiler (libraries of the wheel openvino==2021.4.2) with no stick attached, in a process of its
// own, for `ncs2ctl compile`. Built by `ncs2ctl compile --setup` with
//
//     c++ -std=c++14 -O1 -D_GLIBCXX_USE_CXX11_ABI=0 -rdynamic compile.cpp -o ncs2-compile -ldl
//
//     ncs2-compile LIBRARIES version
//     ncs2-compile LIBRARIES compile MODEL OUT [input-type=U8] [output-type=FP16] [layout=NHWC] [batch=4] [set:KEY=VALUE]...
//
// It speaks on standard output, one line each, fields parted by tabs; the vendor's own chatter lacks the first field:
//
//     ncs2 version TEXT | ncs2 input DIMS NAME | ncs2 output DIMS NAME
//     ncs2 error PHASE TEXT | ncs2 done
//
// The libraries' headers are not used. What stands in for them are facts of their binary interface: the Itanium C++ ABI,
// libstdc++'s strings from before C++11, and the layout of three small types, each checked before it is relied on.
#include <dlfcn.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

const char* phase = "load";

[[noreturn]] void leave(int code) {
    // Not exit(): destructors of the vendor's libraries take a second and free what the kernel frees anyway.
    fflush(stdout);
    _exit(code);
}

std::string one_line(std::string text) {
    for (char& c : text)
        if (static_cast<unsigned char>(c) < ' ') c = ' ';
    return text;
}

[[noreturn]] void fail(const std::string& text) {
    printf("\nncs2\terror\t%s\t%s\n", phase, one_line(text).c_str());
    leave(1);
}

// A class that is returned by value through a hidden pointer. Never destroyed: the process is short.
struct Returned {
    alignas(16) unsigned char bytes[1024];
};

// InferenceEngine::Precision.
struct Precision {
    size_t bits;
    const char* name;
    bool is_float;
    uint8_t code;
};

// InferenceEngine::Layout.
enum : uint8_t { NCHW = 1, NHWC = 2 };

using Config = std::map<std::string, std::string>;
// map<string, shared_ptr<InputInfo>> and map<string, shared_ptr<Data>> have one layout.
using Tensors = std::map<std::string, std::shared_ptr<void>>;

void* engine;

template <class Function>
Function symbol(const char* name) {
    void* found = dlsym(engine, name);
    if (!found) fail(std::string("the library has no ") + name);
    return reinterpret_cast<Function>(found);
}

Precision precision(const std::string& name) {
    if (name == "U8") return {8, "U8", false, 40};
    if (name == "FP16") return {16, "FP16", true, 11};
    if (name == "FP32") return {32, "FP32", true, 10};
    fail("no such type: " + name);
}

std::string dims(const std::vector<size_t>& sizes) {
    std::string text;
    for (size_t size : sizes) text += (text.empty() ? "" : ",") + std::to_string(size);
    return text;
}

// Where an InputInfo keeps its Data: behind its PreProcessInfo.
const size_t DATA_OF_INPUT = 40;

struct Request {
    std::string model, out, input_type, output_type, layout;
    size_t batch = 0;
    Config config;
};

void version() {
    // `struct { struct { int major, minor; } api; const char* build; const char* description; }`
    struct Version {
        int api[2];
        const char* build;
        const char* description;
    };
    auto get = symbol<const Version* (*)()>("GetInferenceEngineVersion");
    printf("\nncs2\tversion\t%s\n", one_line(get()->build).c_str());
    leave(0);
}

void compile(const Request& request) {
    using std::string;
    // `this` is the first argument of a member function; a hidden result pointer stands before it.
    auto core_new = symbol<void (*)(void*, const string&)>("_ZN15InferenceEngine4CoreC1ERKSs");
    auto read_network = symbol<void* (*)(void*, const void*, const string&, const string&)>(
        "_ZNK15InferenceEngine4Core11ReadNetworkERKSsS2_");
    auto load_network = symbol<void* (*)(void*, void*, const void*, const string&, const Config&)>(
        "_ZN15InferenceEngine4Core11LoadNetworkERKNS_10CNNNetworkERKSsRKSt3mapISsSsSt4lessISsESaISt4pairIS4_SsEEE");
    auto inputs_of = symbol<void* (*)(void*, const void*)>("_ZNK15InferenceEngine10CNNNetwork13getInputsInfoEv");
    auto outputs_of = symbol<void* (*)(void*, const void*)>("_ZNK15InferenceEngine10CNNNetwork14getOutputsInfoEv");
    auto set_batch = symbol<void (*)(void*, size_t)>("_ZN15InferenceEngine10CNNNetwork12setBatchSizeEm");
    auto set_precision =
        symbol<void (*)(void*, const Precision&)>("_ZN15InferenceEngine4Data12setPrecisionERKNS_9PrecisionE");
    auto set_layout = symbol<void (*)(void*, uint8_t)>("_ZN15InferenceEngine4Data9setLayoutENS_6LayoutE");
    auto name_of = symbol<const string& (*)(const void*)>("_ZNK15InferenceEngine4Data7getNameEv");
    auto dims_of = symbol<const std::vector<size_t>& (*)(const void*)>("_ZNK15InferenceEngine4Data7getDimsEv");
    auto export_to = symbol<void (*)(void*, const string&)>("_ZN15InferenceEngine17ExecutableNetwork6ExportERKSs");

    static Returned core, network, executable, inputs, outputs;
    core_new(core.bytes, string());
    phase = "read";
    read_network(network.bytes, core.bytes, request.model, string());
    phase = "configure";
    if (request.batch) set_batch(network.bytes, request.batch);

    inputs_of(inputs.bytes, network.bytes);
    for (auto& entry : *reinterpret_cast<Tensors*>(inputs.bytes)) {
        void* data = *reinterpret_cast<void**>(static_cast<char*>(entry.second.get()) + DATA_OF_INPUT);
        if (name_of(data) != entry.first) fail("the inputs do not lie in memory as they should");
        const std::vector<size_t>& sizes = dims_of(data);
        if (!request.input_type.empty()) set_precision(data, precision(request.input_type));
        if (!request.layout.empty() && sizes.size() == 4) set_layout(data, request.layout == "NHWC" ? NHWC : NCHW);
        printf("\nncs2\tinput\t%s\t%s\n", dims(sizes).c_str(), one_line(entry.first).c_str());
    }
    outputs_of(outputs.bytes, network.bytes);
    for (auto& entry : *reinterpret_cast<Tensors*>(outputs.bytes)) {
        void* data = entry.second.get();
        if (name_of(data) != entry.first) fail("the outputs do not lie in memory as they should");
        if (!request.output_type.empty()) set_precision(data, precision(request.output_type));
        printf("\nncs2\toutput\t%s\t%s\n", dims(dims_of(data)).c_str(), one_line(entry.first).c_str());
    }

    phase = "compile";
    load_network(executable.bytes, core.bytes, network.bytes, "MYRIAD", request.config);
    phase = "export";
    export_to(executable.bytes, request.out);
    printf("\nncs2\tdone\n");
    leave(0);
}

long skipped_seconds;

}  // namespace

// The plugin looks for a stick for 5 s before it compiles without one. Our libusb (libusb.cpp) calls this each time that
// it is asked for sticks, and the clock below then runs ahead: the wait is over at once. Exported by -rdynamic.
extern "C" void ncs2_skip_time() { skipped_seconds += 2; }

extern "C" int clock_gettime(clockid_t clock, struct timespec* time) noexcept {
    int result = syscall(SYS_clock_gettime, clock, time);
    time->tv_sec += skipped_seconds;
    return result;
}

int main(int argc, char** argv) {
    if (argc < 3) fail("usage: ncs2-compile LIBRARIES version | compile MODEL OUT [KEY=VALUE]...");
    const std::string library = std::string(argv[1]) + "/libinference_engine.so";
    engine = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (!engine) fail(dlerror());
    const std::string verb = argv[2];
    if (verb == "version") version();
    if (verb != "compile" || argc < 5) fail("no such request: " + verb);

    Request request;
    request.model = argv[3];
    request.out = argv[4];
    // Compiles for the Myriad X of the stick without asking a stick what it is.
    request.config["VPU_MYRIAD_PLATFORM"] = "VPU_MYRIAD_2480";
    for (int i = 5; i < argc; i++) {
        const std::string word = argv[i];
        const size_t equals = word.find('=');
        if (equals == std::string::npos) fail("expected KEY=VALUE, found " + word);
        const std::string key = word.substr(0, equals), value = word.substr(equals + 1);
        if (key == "input-type") request.input_type = value;
        else if (key == "output-type") request.output_type = value;
        else if (key == "layout") request.layout = value;
        else if (key == "batch") request.batch = strtoul(value.c_str(), nullptr, 10);
        else if (key.compare(0, 4, "set:") == 0) request.config[key.substr(4)] = value;
        else fail("no such option: " + key);
    }
    try {
        compile(request);
    } catch (const std::exception& error) {
        fail(error.what());
    } catch (...) {
        fail("an exception without a text");
    }
}
