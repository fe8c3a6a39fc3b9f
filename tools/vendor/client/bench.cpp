// The vendor's client from C++, for its speed alone: what `client.py` measures holds Python's own cost too.
//
//     c++ -std=c++14 -O2 -D_GLIBCXX_USE_CXX11_ABI=0 bench.cpp -o vendor-bench -ldl
//     vendor-bench LIBRARIES DEVICE BLOB REQUESTS DEPTH:SECONDS...
//
// Answers as `client.py` does to the steps config, load, bench (one for each DEPTH:SECONDS; depth 0 is synchronous), close.
// The libraries' headers are not used: the calls are by the names that the libraries export, which follow the Itanium C++ ABI with
// libstdc++'s strings from before C++11; objects that are returned go through a hidden pointer and are never looked into.
#include <dirent.h>
#include <dlfcn.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Config = std::map<std::string, std::string>;

struct Returned {
    alignas(16) unsigned char bytes[256];
};

void* engine;

template <class Function>
Function symbol(const char* name) {
    void* found = dlsym(engine, name);
    if (!found) throw std::runtime_error(std::string("the library has no ") + name);
    return reinterpret_cast<Function>(found);
}

double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

double seconds(const timeval& time) { return time.tv_sec + time.tv_usec / 1e6; }

struct Usage {
    double cpu, main_cpu;
    long switches;
};

Usage usage() {
    rusage all, own;
    getrusage(RUSAGE_SELF, &all);
    getrusage(RUSAGE_THREAD, &own);
    return {seconds(all.ru_utime) + seconds(all.ru_stime), seconds(own.ru_utime) + seconds(own.ru_stime),
            all.ru_nvcsw + all.ru_nivcsw};
}

int threads() {
    int count = 0;
    if (DIR* tasks = opendir("/proc/self/task")) {
        while (dirent* task = readdir(tasks)) count += task->d_name[0] != '.';
        closedir(tasks);
    }
    return count;
}

void begin(int step, const char* word) {
    printf("{\"step\": %d, \"do\": \"%s\", \"at\": \"begin\"}\n", step, word);
    fflush(stdout);
}

void end(int step, const char* word, const std::string& more = "") {
    printf("{%s\"step\": %d, \"do\": \"%s\", \"at\": \"end\"}\n", more.c_str(), step, word);
    fflush(stdout);
}

struct Calls {
    void (*infer)(void*);
    void (*start)(void*);
    int (*wait)(void*, int64_t);
};

std::string bench(const Calls& calls, std::vector<Returned>& requests, size_t depth, double length) {
    std::vector<double> latencies;
    latencies.reserve(1 << 18);
    const Usage before = usage();
    const double began = now(), until = began + length;
    double last = began, gap = 0;
    auto note = [&](double start) {
        const double at = now();
        latencies.push_back(at - start);
        gap = std::max(gap, at - last);
        last = at;
    };
    // -1 waits for the result.
    auto finish = [&](Returned& request) {
        if (calls.wait(request.bytes, -1) != 0) throw std::runtime_error("a request failed");
    };
    if (depth == 0) {
        while (last < until) {
            const double start = now();
            calls.infer(requests[0].bytes);
            note(start);
        }
    } else {
        std::vector<double> starts(depth);
        for (size_t at = 0; at < depth; at++) {
            starts[at] = now();
            calls.start(requests[at].bytes);
        }
        size_t at = 0;
        while (last < until) {
            finish(requests[at]);
            note(starts[at]);
            starts[at] = now();
            calls.start(requests[at].bytes);
            at = (at + 1) % depth;
        }
        for (size_t later = 0; later < depth; later++) finish(requests[(at + later) % depth]);
    }
    const double took = now() - began;
    const Usage after = usage();
    std::sort(latencies.begin(), latencies.end());
    const size_t count = latencies.size();
    char text[512];
    snprintf(text, sizeof text,
             "\"inferences\": %zu, \"seconds\": %.9f, \"cpu_s\": %.9f, \"main_cpu_s\": %.9f, \"switches\": %ld, \"threads\": %d, "
             "\"gap_s\": %.9f, \"p50_s\": %.9f, \"p99_s\": %.9f, ",
             count, took, after.cpu - before.cpu, after.main_cpu - before.main_cpu, after.switches - before.switches, threads(),
             gap, latencies[count / 2], latencies[std::min(count - 1, count * 99 / 100)]);
    return text;
}

}  // namespace

int main(int argc, char** argv) {
    int step = 0;
    const char* word = "config";
    try {
        if (argc < 6) throw std::runtime_error("usage: vendor-bench LIBRARIES DEVICE BLOB REQUESTS DEPTH:SECONDS...");
        engine = dlopen((std::string(argv[1]) + "/libinference_engine.so").c_str(), RTLD_NOW | RTLD_GLOBAL);
        if (!engine) throw std::runtime_error(dlerror());
        auto core_new = symbol<void (*)(void*, const std::string&)>("_ZN15InferenceEngine4CoreC1ERKSs");
        auto core_delete = symbol<void (*)(void*, const std::string&)>("_ZN15InferenceEngine4Core16UnregisterPluginERKSs");
        auto import = symbol<void* (*)(void*, void*, const std::string&, const std::string&, const Config&)>(
            "_ZN15InferenceEngine4Core13ImportNetworkERKSsS2_RKSt3mapISsSsSt4lessISsESaISt4pairIS1_SsEEE");
        auto create = symbol<void* (*)(void*, void*)>("_ZN15InferenceEngine17ExecutableNetwork18CreateInferRequestEv");
        const Calls calls = {symbol<void (*)(void*)>("_ZN15InferenceEngine12InferRequest5InferEv"),
                             symbol<void (*)(void*)>("_ZN15InferenceEngine12InferRequest10StartAsyncEv"),
                             symbol<int (*)(void*, int64_t)>("_ZN15InferenceEngine12InferRequest4WaitEl")};
        begin(step, word);
        static Returned core, network;
        core_new(core.bytes, std::string());
        end(step, word);

        begin(++step, word = "load");
        import(network.bytes, core.bytes, argv[3], argv[2], Config());
        std::vector<Returned> requests(std::max(1, atoi(argv[4])));
        for (Returned& request : requests) create(request.bytes, network.bytes);
        end(step, word);

        for (int at = 5; at < argc; at++) {
            unsigned depth;
            double length;
            if (sscanf(argv[at], "%u:%lf", &depth, &length) != 2) throw std::runtime_error("expected DEPTH:SECONDS");
            if (depth > requests.size()) throw std::runtime_error("more in flight than requests");
            begin(++step, word = "bench");
            end(step, word, bench(calls, requests, depth, length));
        }

        begin(++step, word = "close");
        core_delete(core.bytes, "MYRIAD");
        end(step, word);
    } catch (const std::exception& error) {
        std::string text = error.what();
        for (char& c : text)
            if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < ' ') c = ' ';
        end(step, word, "\"error\": \"" + text + "\", ");
    }
    printf("{\"done\": true}\n");
    // Not exit(): the sticks reset themselves without us, and what the libraries free the kernel frees anyway.
    fflush(stdout);
    _exit(0);
}
