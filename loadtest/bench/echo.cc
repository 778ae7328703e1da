// The least that a gRPC server in C++ can do: take a message, answer with one of a given size. The bench's limit.
//
//   g++ -O2 -std=c++17 -Wl,--copy-dt-needed-entries echo.cc -o echo -lgrpc++ -lgrpc -lgpr
//   ./echo 60 /atelier.v1.Classifier/Classify --ready-file ready.json

#include <csignal>
#include <cstdio>
#include <fstream>
#include <string>

#include <unistd.h>

#include <grpcpp/generic/async_generic_service.h>  // brings the handler of raw messages, which has moved between releases
#include <grpcpp/grpcpp.h>

using Bytes = grpc::ByteBuffer;

// One unary method, raw bytes in and out. CallbackGenericService would do, at 18 us a request where this takes 11.
struct Echo : grpc::Service {
  Echo(const char* method, Bytes reply) {
    AddMethod(new grpc::internal::RpcServiceMethod(method, grpc::internal::RpcMethod::NORMAL_RPC, nullptr));
    auto answer = [reply](grpc::CallbackServerContext* call, const Bytes*, Bytes* out) {
      *out = reply;
      grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
      reactor->Finish(grpc::Status::OK);
      return reactor;
    };
    MarkMethodRawCallback(0, new grpc::internal::CallbackUnaryHandler<Bytes, Bytes>(answer));
  }
};

int main(int, char** arguments) {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);  // in all threads that gRPC starts, too
  const grpc::Slice slice(std::string(std::stoul(arguments[1]), 'x'));
  Echo echo(arguments[2], Bytes(&slice, 1));
  grpc::ServerBuilder builder;
  int port = 0, received = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port).RegisterService(&echo);
  auto server = builder.BuildAndStart();
  const std::string ready = arguments[4];  // after --ready-file
  std::ofstream(ready + ".partial") << "{\"targets\": [\"127.0.0.1:" << port << "\"], \"pid\": " << getpid() << "}";
  std::rename((ready + ".partial").c_str(), ready.c_str());
  sigwait(&stop, &received);
  server->Shutdown();
}
