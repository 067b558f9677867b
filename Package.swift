// swift-tools-version:6.0
import Foundation
import PackageDescription

/// Where the Swift on PATH has what it takes to link its runtime into a program: not every distribution's package has the libraries for that.
let staticRuntime = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":").map { "\($0)/swift" }
    .first { FileManager.default.isExecutableFile(atPath: $0) }
    .map { URL(fileURLWithPath: $0).resolvingSymlinksInPath().deletingLastPathComponent().deletingLastPathComponent() }
    .map { $0.appendingPathComponent("lib/swift_static/linux").path } ?? "/nonexistent"
let hasStaticRuntime = FileManager.default.fileExists(atPath: staticRuntime + "/static-stdlib-args.lnk")
/// Whether a program without any shared library can be linked: the C and C++ libraries as well, which Debian's compiler comes with and Fedora's does not.
let hasStaticLibraries = FileManager.default.fileExists(atPath: staticRuntime + "/static-executable-args.lnk")
    && FileManager.default.fileExists(atPath: "/usr/lib/x86_64-linux-gnu/libc.a")
    && !((try? FileManager.default.contentsOfDirectory(atPath: "/usr/lib/gcc/x86_64-linux-gnu")) ?? [])
        .filter { FileManager.default.fileExists(atPath: "/usr/lib/gcc/x86_64-linux-gnu/\($0)/libstdc++.a") }.isEmpty

// No package dependencies: Foundation, Dispatch and the C libraries below Modulemaps/ only.
let package = Package(
    name: "shadow-virt",
    products: [
        .executable(name: "shadow-virt", targets: ["shadow-virt"]),
        .executable(name: "shadow-virt-hook", targets: ["shadow-virt-hook"]),
        .library(name: "Libvirt", targets: ["Libvirt"]),
        .library(name: "MigrationStream", targets: ["MigrationStream"]),
    ],
    targets: [
        .systemLibrary(name: "CLibvirt", path: "Modulemaps/CLibvirt"),
        .systemLibrary(name: "CXXHash", path: "Modulemaps/CXXHash"),
        .systemLibrary(name: "CLZ4", path: "Modulemaps/CLZ4"),
        .systemLibrary(name: "CGnuTLS", path: "Modulemaps/CGnuTLS"),
        .systemLibrary(name: "CLinux", path: "Modulemaps/CLinux"),
        .systemLibrary(name: "CIPMIMonitoring", path: "Modulemaps/CIPMIMonitoring"),

        // Without Foundation, for libvirt's hook.
        .target(name: "SystemCalls", dependencies: ["CLinux"]),
        .target(name: "ConfFile", dependencies: ["SystemCalls"]),
        .target(name: "HookProtocol", dependencies: ["SystemCalls"]),

        .target(name: "Platform", dependencies: ["SystemCalls", "CLinux"]),
        .target(name: "Libvirt", dependencies: ["CLibvirt"]),
        .target(name: "MigrationStream", dependencies: ["Platform"]),
        .target(name: "Transport", dependencies: ["Platform", "CGnuTLS"]),
        .target(name: "ReplicaStore", dependencies: ["Platform", "CLinux", "CXXHash"], exclude: ["README.md"]),
        .target(name: "Replication",
                dependencies: ["Platform", "MigrationStream", "Transport", "NBDServer", "ReplicaStore", "CXXHash", "CLZ4", "CLinux"]),
        .target(name: "NBDServer", dependencies: ["Platform", "CLinux"]),
        .target(name: "Configuration", dependencies: ["Platform", "ControlProtocol", "ConfFile"]),
        .target(name: "ControlProtocol", dependencies: ["Platform", "HookProtocol"]),
        .target(name: "Telemetry", dependencies: ["Platform", "CLinux", "CXXHash", "Libvirt", "ControlProtocol"], exclude: ["README.md"]),
        .target(name: "Health", dependencies: ["Platform", "Configuration", "ControlProtocol", "CIPMIMonitoring"]),
        .target(name: "Orchestration",
                dependencies: ["Platform", "CLinux", "Libvirt", "Replication", "ReplicaStore", "Transport", "Configuration", "ControlProtocol", "Telemetry",
                               "Health", "Drift"],
                exclude: ["Passes/README.md", "Shadows/README.md"]),
        .target(name: "Service",
                dependencies: ["Platform", "CLinux", "Libvirt", "Orchestration", "Transport", "Configuration", "ControlProtocol", "Health", "Metrics"]),
        .target(name: "Metrics", dependencies: ["Platform", "ControlProtocol"]),
        .target(name: "Drift", exclude: ["README.md"]),
        .target(name: "Commands", dependencies: ["Platform", "Configuration", "ControlProtocol", "CXXHash", "Drift"], resources: [
                    // Links to hooks/ and examples/: what `install` writes is what stands there.
                    .embedInCode("Installation/Files/hook.sh"),
                    .embedInCode("Installation/Files/unit.service"),
                    .embedInCode("Installation/Files/configuration.conf"),
                ]),
        .executableTarget(name: "shadow-virt", dependencies: ["Commands", "Service", "Orchestration", "Replication", "Health"]),
        // libvirt's daemon stands still while this starts: with Foundation 20 ms of processor time, with Swift's libraries to load 3, with C's and
        // C++'s 2.4, with nothing to load 1.1 (`true` of coreutils: 0.8); and the less it takes the less often it waits for its turn where many want the processors.
        // No test target may depend on it: they are all linked into one program, which would be linked like this one.
        .executableTarget(name: "shadow-virt-hook", dependencies: ["ConfFile", "HookProtocol", "SystemCalls"],
                          swiftSettings: hasStaticLibraries ? [.define("NOTHING_TO_LOAD")] : [],
                          linkerSettings: hasStaticLibraries ? [.unsafeFlags(["-static-executable"])] : hasStaticRuntime ? [.unsafeFlags(["-static-stdlib"])] : []),
        .executableTarget(name: "shadow-virt-benchmark",
                          dependencies: ["Platform", "CXXHash", "MigrationStream", "NBDServer", "Replication", "Transport", "Libvirt"],
                          path: "Tests/Benchmarks",
                          exclude: ["run.sh", "drift.sh", "README.md"]),

        .executableTarget(name: "replica-store-exerciser", dependencies: ["ReplicaStore", "Platform"], path: "Tests/ReplicaTool"),

        .testTarget(name: "LibvirtTests", dependencies: ["Libvirt"]),
        .testTarget(name: "MigrationStreamTests", dependencies: ["MigrationStream", "Platform"]),
        .testTarget(name: "PlatformTests", dependencies: ["Platform", "CLinux"]),
        .testTarget(name: "TransportTests", dependencies: ["Transport", "Platform"]),
        .testTarget(name: "ReplicationTests",
                    dependencies: ["Replication", "MigrationStream", "Transport", "NBDServer", "ReplicaStore", "Platform", "CLinux"]),
        .testTarget(name: "NBDServerTests", dependencies: ["NBDServer", "Platform"]),
        .testTarget(name: "ReplicaStoreTests", dependencies: ["ReplicaStore", "Platform", "CLinux", "replica-store-exerciser"]),
        .testTarget(name: "ConfigurationTests", dependencies: ["Configuration"]),
        .testTarget(name: "HealthTests", dependencies: ["Health", "Configuration", "ControlProtocol", "Platform", "CIPMIMonitoring", "shadow-virt"]),
        .testTarget(name: "ControlProtocolTests", dependencies: ["ControlProtocol", "Platform"]),
        .testTarget(name: "TelemetryTests", dependencies: ["Telemetry", "Libvirt", "Platform", "ControlProtocol"]),
        .testTarget(name: "OrchestrationTests", dependencies: ["Orchestration", "Libvirt", "Configuration", "ControlProtocol", "Platform", "Drift", "Telemetry"], exclude: ["Fixtures"]),
        .testTarget(name: "DriftTests", dependencies: ["Drift"]),
        .testTarget(name: "ServiceTests", dependencies: ["Service", "Orchestration", "Configuration", "ControlProtocol", "Platform"]),
        .testTarget(name: "MetricsTests", dependencies: ["Metrics", "ControlProtocol", "Platform"], exclude: ["Fixtures"]),
        .testTarget(name: "CommandsTests", dependencies: ["Commands", "Configuration", "ControlProtocol", "Platform"]),
        .testTarget(name: "InstallationTests",
                    dependencies: ["shadow-virt", "Commands", "Service", "Orchestration", "Configuration", "ControlProtocol", "Platform"]),
        .testTarget(name: "EndToEndTests", dependencies: ["shadow-virt", "NBDServer"]),
    ],
    swiftLanguageModes: [.v6]
)
