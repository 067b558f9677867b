import Foundation
import Glibc
import Libvirt
import Platform

/// Two libvirt hosts (Tests/Support/hosts.sh) with the service on both.
final class TwoHosts {
    private let bench: Bench
    private let folder: String
    private var services: [String: Subprocess] = [:]
    private var connections: [String: Connection] = [:]

    /// `memoryOnB`: host B's images, and what its service keeps, lie in memory. On one machine the hosts share a disk, and the flushes
    /// of each wait for those of the other.
    init(_ bench: Bench, memoryOnB: Bool = false) throws {
        self.bench = bench
        folder = "\(bench.work)/hosts"
        try? FileManager.default.removeItem(atPath: folder)
        if memoryOnB {
            let memory = "/dev/shm/shadow-virt-benchmark-hosts.\(getpid())"
            bench.atEnd { try? FileManager.default.removeItem(atPath: memory) }
            try FileManager.default.createDirectory(atPath: "\(folder)/B/var/lib", withIntermediateDirectories: true)
            for name in ["libvirt", "shadow-virt"] {
                try FileManager.default.createDirectory(atPath: "\(memory)/\(name)", withIntermediateDirectories: true)
                try FileManager.default.createSymbolicLink(atPath: "\(folder)/B/var/lib/\(name)", withDestinationPath: "\(memory)/\(name)")
            }
        }
        bench.atEnd { [self] in down() }
        try runProgram("\(bench.root)/Tests/Support/hosts.sh", ["up", folder])
        let secret = (0..<32).map { _ in String(format: "%02x", UInt8.random(in: 0...255)) }.joined()
        for (host, other, here, there) in [("A", "B", "10.77.0.1", "10.77.0.2"), ("B", "A", "10.77.0.2", "10.77.0.1")] {
            let configuration = "\(folder)/\(host)/etc/shadow-virt"
            try """
            host_name = "\(host)"
            listen = "\(here):16520"
            peers = [ "\(other) \(there):16520 qemu+tcp://\(there)/system" ]

            """.write(toFile: "\(configuration)/shadow-virt.conf", atomically: true, encoding: .utf8)
            try secret.write(toFile: "\(configuration)/secret", atomically: true, encoding: .utf8)
            chmod("\(configuration)/secret", 0o600)
            try serve(host)
            connections[host] = try Connection.open("qemu+unix:///system?socket=\(folder)/\(host)/run/libvirt/libvirt-sock")
            for order in [["pool-define-as", "images", "dir", "--target", "/var/lib/libvirt/images"], ["pool-start", "images"]] {
                try on(host, ["virsh", "-q"] + order)
            }
        }
    }

    private func serve(_ host: String) throws {
        services[host] = try Subprocess.spawn("/bin/bash", arguments: [
            "-c", "exec \"$0\" exec \"$1\" \"$2\" \"$3\" serve >>\"$1/$2/serve.log\" 2>&1",
            "\(bench.root)/Tests/Support/hosts.sh", folder, host, bench.shadowVirt,
        ], descriptors: [])
        try waitFor("the service on host\(host)", seconds: 10) { (try? shadowVirt(host, ["status"])) != nil }
    }

    /// Both services anew, with another value of a key; their workers and guests go on.
    func restart(_ key: String, _ value: String) throws {
        for host in ["A", "B"] {
            let path = "\(folder)/\(host)/etc/shadow-virt/shadow-virt.conf"
            let lines = try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n").filter { !$0.hasPrefix("\(key) ") }
            try (lines.joined(separator: "\n") + "\n\(key) = \(value)\n").write(toFile: path, atomically: true, encoding: .utf8)
            guard let service = services[host] else { throw BenchFailure("No service on host\(host)") }
            service.signal(SIGTERM)
            guard service.wait(until: MonotonicTime.now.adding(milliseconds: 15_000)) != nil else { throw BenchFailure("The service on host\(host) does not end") }
            try serve(host)
        }
    }

    private func down() {
        connections.values.forEach { $0.close() }
        for service in services.values {
            service.signal(SIGTERM)
            if service.wait(until: MonotonicTime.now.adding(milliseconds: 3000)) == nil { service.signal(SIGKILL) }
        }
        _ = try? runProgram("\(bench.root)/Tests/Support/hosts.sh", ["down", folder])
    }

    @discardableResult
    func on(_ host: String, _ command: [String]) throws -> String {
        try runProgram("\(bench.root)/Tests/Support/hosts.sh", ["exec", folder, host] + command)
    }

    @discardableResult
    func shadowVirt(_ host: String, _ arguments: [String]) throws -> String { try on(host, [bench.shadowVirt] + arguments) }

    func connection(_ host: String) throws -> Connection {
        guard let connection = connections[host] else { throw BenchFailure("No connection to host\(host)") }
        return connection
    }

    /// A disk image in that host's pool.
    func image(_ host: String, _ name: String) -> String { "\(folder)/\(host)/var/lib/libvirt/images/\(name).img" }

    /// Boots a guest of that image on host A and waits for its ticks. `keys`: of Tests/Guests/domain.sh.
    func boot(_ name: String, image: String, memoryMiB: Int = 64, keys: [String] = [], bootSeconds: Double = 60) throws {
        try runProgram("/bin/cp", ["--sparse=always", bench.guest(image), self.image("A", name)])
        try create(name, memoryMiB: memoryMiB, keys: keys, bootSeconds: bootSeconds)
    }

    /// Boots a guest whose disks are there.
    func create(_ name: String, memoryMiB: Int = 64, keys: [String] = [], bootSeconds: Double = 60) throws {
        let xml = try runProgram("\(bench.root)/Tests/Guests/domain.sh", [name, "MEMORY_MIB=\(memoryMiB)"] + keys)
        let file = "\(bench.work)/\(name).xml"
        try xml.write(toFile: file, atomically: true, encoding: .utf8)
        unlink(serial("A", name))
        try on("A", ["virsh", "-q", "create", file])
        try waitFor("\(name)'s first ticks", seconds: bootSeconds) {
            usleep(100_000)
            return ((try? String(contentsOfFile: serial("A", name), encoding: .utf8)) ?? "").contains("\nT 2")
        }
    }

    private func serial(_ host: String, _ name: String) -> String { "\(folder)/\(host)/var/log/libvirt/\(name).serial" }

    /// Records that the guest on host A says it has written to its first disk; 0 before it says so.
    func lastRecords(_ name: String) -> Int {
        let fd = open(serial("A", name), O_RDONLY)
        guard fd >= 0 else { return 0 }
        defer { close(fd) }
        var tail = [UInt8](repeating: 0, count: 8192)
        let count = pread(fd, &tail, tail.count, max(0, lseek(fd, 0, SEEK_END) - off_t(tail.count)))
        // Its last line may be half there.
        let lines = String(decoding: tail[..<max(0, count)], as: UTF8.self).split(separator: "\n", omittingEmptySubsequences: false).dropLast()
        let fields = lines.last { $0.hasPrefix("D ") }?.split { $0 == " " || $0 == "\r" }
        return fields.flatMap { $0.count > 1 ? Int($0[1]) : nil } ?? 0
    }

    /// Without its disks the other host needs a copy of them for the shadow.
    func protect(_ name: String, at host: String = "A", to other: String = "B", intervalMs: Int, withDisks: Bool = false,
                 discardStale: Bool = false) throws {
        let copy = image(other, name)
        if !withDisks, access(copy, F_OK) != 0 { try runProgram("/bin/cp", ["--sparse=always", image(host, name), copy]) }
        let options = withDisks ? (discardStale ? ["--discard-stale"] : []) : ["--without-disks"]
        try shadowVirt(host, ["protect", name, "--to", other, "--interval", "\(intervalMs)ms", "--no-policy"] + options)
    }

    func status(_ name: String, at host: String = "A") throws -> [String: Any] {
        let text = try shadowVirt(host, ["status", name, "--format", "json"])
        let report = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
        guard let domain = (report?["domains"] as? [[String: Any]])?.first else { throw BenchFailure("No status of \(name): \(text)") }
        return domain
    }

    /// What the service on host A says that telemetry costs it.
    func telemetryPercent() throws -> Double? {
        let text = try shadowVirt("A", ["status", "--format", "json"])
        return (try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])?["telemetry_cpu_percent"] as? Double
    }

    // MARK: Processes

    private func pidFile(_ path: String) -> pid_t? {
        (try? String(contentsOfFile: path, encoding: .utf8)).flatMap { pid_t($0.split { $0 == " " || $0 == "\n" }.first ?? "") }
    }

    func service(_ host: String) throws -> pid_t {
        guard let pid = services[host]?.pid else { throw BenchFailure("No service on host\(host)") }
        return pid
    }

    /// The service's worker; there is one when one domain is protected.
    func worker(_ host: String) throws -> pid_t {
        let pid = try service(host)
        var found: pid_t?
        for task in try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task") {
            let text = (try? String(contentsOfFile: "/proc/\(pid)/task/\(task)/children", encoding: .utf8)) ?? ""
            for child in text.split(separator: " ").compactMap({ pid_t($0) }) {
                let command = (try? String(contentsOfFile: "/proc/\(child)/cmdline", encoding: .utf8)) ?? ""
                if command.contains("\0worker") { found = child }
            }
        }
        guard let found else { throw BenchFailure("The service on host\(host) has no worker") }
        return found
    }

    func libvirtd(_ host: String) -> pid_t? { pidFile("\(folder)/\(host)/libvirtd.pid") }
    func qemu(_ host: String, _ name: String) -> pid_t? { pidFile("\(folder)/\(host)/run/libvirt/qemu/\(name).pid") }
}
