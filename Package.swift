// swift-tools-version:6.0
import PackageDescription

// No package dependencies: Foundation, Dispatch and the C libraries below Modulemaps/ only.
let package = Package(
    name: "shadow-virt",
    products: [
        .executable(name: "shadow-virt", targets: ["shadow-virt"]),
        .library(name: "Libvirt", targets: ["Libvirt"]),
        .library(name: "MigrationStream", targets: ["MigrationStream"]),
    ],
    targets: [
        .systemLibrary(name: "CLibvirt", path: "Modulemaps/CLibvirt"),
        .systemLibrary(name: "CXXHash", path: "Modulemaps/CXXHash"),
        .systemLibrary(name: "CLZ4", path: "Modulemaps/CLZ4"),
        .systemLibrary(name: "CGnuTLS", path: "Modulemaps/CGnuTLS"),
        .systemLibrary(name: "CLinux", path: "Modulemaps/CLinux"),

        .target(name: "Platform", dependencies: ["CLinux"]),
        .target(name: "Libvirt", dependencies: ["CLibvirt"]),
        .target(name: "MigrationStream", dependencies: ["Platform"]),
        .target(name: "Transport", dependencies: ["Platform", "CGnuTLS"]),
        .target(name: "ReplicaStore", dependencies: ["Platform", "CLinux", "CXXHash"], exclude: ["README.md"]),
        .target(name: "Replication",
                dependencies: ["Platform", "MigrationStream", "Transport", "NBDServer", "ReplicaStore", "CXXHash", "CLZ4", "CLinux"]),
        .target(name: "NBDServer", dependencies: ["Platform", "CLinux"]),
        .target(name: "Configuration", dependencies: ["Platform"]),
        .target(name: "ControlProtocol", dependencies: ["Platform"]),
        .target(name: "Orchestration",
                dependencies: ["Platform", "CLinux", "Libvirt", "Replication", "ReplicaStore", "Transport", "Configuration", "ControlProtocol"],
                exclude: ["Passes/README.md", "Shadows/README.md"]),
        .target(name: "Service",
                dependencies: ["Platform", "CLinux", "Libvirt", "Orchestration", "Transport", "Configuration", "ControlProtocol", "Metrics"]),
        .target(name: "Metrics", dependencies: ["Platform", "ControlProtocol"]),
        .target(name: "Commands", dependencies: ["Platform", "Configuration", "ControlProtocol"]),
        .executableTarget(name: "shadow-virt", dependencies: ["Commands", "Service", "Orchestration", "Replication"]),
        .executableTarget(name: "shadow-virt-benchmark",
                          dependencies: ["Platform", "CXXHash", "MigrationStream", "NBDServer", "Replication", "Transport", "Libvirt"],
                          path: "Tests/Benchmarks",
                          exclude: ["run.sh", "README.md"]),

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
        .testTarget(name: "ControlProtocolTests", dependencies: ["ControlProtocol", "Platform"]),
        .testTarget(name: "OrchestrationTests", dependencies: ["Orchestration", "Libvirt", "Configuration", "ControlProtocol", "Platform"]),
        .testTarget(name: "ServiceTests", dependencies: ["Service", "Orchestration", "Configuration", "ControlProtocol", "Platform"]),
        .testTarget(name: "MetricsTests", dependencies: ["Metrics", "ControlProtocol", "Platform"], exclude: ["Fixtures"]),
        .testTarget(name: "CommandsTests", dependencies: ["Commands", "Configuration", "ControlProtocol", "Platform"]),
        .testTarget(name: "EndToEndTests", dependencies: ["shadow-virt", "NBDServer"]),
    ],
    swiftLanguageModes: [.v6]
)
