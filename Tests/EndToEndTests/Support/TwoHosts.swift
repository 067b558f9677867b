import Foundation
import Glibc
import XCTest

/// Two or more libvirt hosts with the service on each (Tests/Support/hosts.sh). Everything it starts ends with it, and with this process, however that ends.
final class TwoHosts: @unchecked Sendable {
    static let tests = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().path
    static let script = tests + "/Support/hosts.sh"
    static let secret = "00112233445566778899aabbccddeeff"

    let folder: String
    /// A, B and so on.
    let members: [Host]
    private(set) var services: [Host: Service] = [:]
    private let janitor: ChildProcess
    private let leash: Int32

    // MARK: What it needs

    /// Why the machine cannot do it; nil when it can.
    static let obstacle: String? = {
        if let obstacle = obstacleWithoutKVM { return obstacle }
        if access("/dev/kvm", R_OK | W_OK) != 0 { return "no /dev/kvm: the ledger guest and the engine continuous need it" }
        for (tool, package) in [("as", "binutils"), ("swiftc", "swift")] where !isInstalled(tool) { return "no \(tool) (Debian: apt install \(package))" }
        return nil
    }()

    /// The same for hosts whose guests run under TCG, or are not protected.
    static let obstacleWithoutKVM: String? = {
        if geteuid() != 0 { return "not root: namespaces and libvirtd need it" }
        for (tool, package) in [("libvirtd", "libvirt-daemon"), ("qemu-system-x86_64", "qemu-system-x86"), ("virsh", "libvirt-clients"), ("ip", "iproute2")]
        where !isInstalled(tool) { return "no \(tool) (Debian: apt install \(package))" }
        return nil
    }()

    static func isInstalled(_ tool: String) -> Bool {
        let paths: [String] = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":").map(String.init) + ["/usr/sbin", "/sbin"]
        return paths.contains { access("\($0)/\(tool)", X_OK) == 0 }
    }

    /// The program under test: $SHADOW_VIRT_BINARY, else what was built along with the tests.
    static let binary: String = ProcessInfo.processInfo.environment["SHADOW_VIRT_BINARY"]
        ?? Bundle.main.bundleURL.appendingPathComponent("shadow-virt").path

    /// Images and ledger-tool, built once.
    static let guests = Result { () throws -> String in
        let folder = Bundle.main.bundleURL.appendingPathComponent("e2e-guests").path
        let result = try runCommand([tests + "/Guests/build.sh", folder], limit: 300)
        try require(result.succeeded, "The ledger guests cannot be built: \(result.summary)")
        return folder
    }

    /// Where hosts.sh keeps what libvirt knows of QEMU from one class to the next.
    private static let cache: Void = { _ = setenv("HOSTS_CACHE", Bundle.main.bundleURL.appendingPathComponent("e2e-libvirt-cache").path, 0) }()

    // MARK: Life

    /// `count`: of hosts. `configuration`: lines for every host's shadow-virt.conf, `ownLines` for that of one.
    /// `withServices`: false for libvirt alone. `withLedger`: false for a machine that need not have KVM; without a ledger guest's image.
    init(configuration: [String] = [], withServices: Bool = true, withLedger: Bool = true, count: Int = 2, ownLines: [Host: [String]] = [:]) throws {
        if let obstacle = withServices && withLedger ? Self.obstacle : Self.obstacleWithoutKVM { throw XCTSkip("End-to-end tests skipped: \(obstacle)") }
        try require(!withServices || access(Self.binary, X_OK) == 0, "No shadow-virt at \(Self.binary); set SHADOW_VIRT_BINARY")
        try require((2...Host.possible.count).contains(count), "2 to \(Host.possible.count) hosts, not \(count)")
        members = Array(Host.possible.prefix(count))
        Self.cache
        folder = NSTemporaryDirectory() + "/shadow-virt-e2e-\(getpid())-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        // In a session of its own, away from the terminal's Ctrl-C, it waits for the end of a pipe whose other end only this process holds.
        var ends: [Int32] = [0, 0]
        try require(pipe(&ends) == 0 && fcntl(ends[1], F_SETFD, FD_CLOEXEC) == 0, "No pipe")
        janitor = try ChildProcess(["setsid", "bash", "-c", "read -r; \"$1\" down \"$2\"; rm -rf \"$2\"", "janitor", Self.script, folder], input: ends[0])
        close(ends[0])
        leash = ends[1]
        do {
            try hosts("up", "e2e-\(getpid())", "\(count)", limit: 40 * Double(count))
            guard withServices else { return }
            let guests = withLedger ? try Self.guests.get() : nil
            for host in members {
                try configure(host, configuration + (ownLines[host] ?? []))
                if let guests { try FileManager.default.copyItem(atPath: guests + "/ledger.img", toPath: root(host) + "/var/lib/libvirt/images/ledger.img") }
                services[host] = Service(command: [Self.script, "exec", folder, host.rawValue, Self.binary, "serve"], log: root(host) + "/service.log")
                try service(host).start()
            }
            for host in members { try waitForService(host) }
        } catch {
            down()
            throw error
        }
    }

    /// Ends everything. Returns what should not be there any more but is.
    @discardableResult
    func down() -> [String] {
        var left: [String] = []
        for (host, service) in services {
            do { try service.stop() } catch { left.append("\(host.name): \(error)") }
        }
        if let result = try? runCommand([Self.script, "down", folder], limit: 30), !result.succeeded { left.append("hosts.sh down: \(result.summary)") }
        left += leftovers()
        if let keep = ProcessInfo.processInfo.environment["E2E_KEEP_LOGS"] {
            for host in members { try? FileManager.default.copyItem(atPath: root(host), toPath: "\(keep)/\(URL(fileURLWithPath: folder).lastPathComponent)-\(host.rawValue)") }
        }
        close(leash)
        if janitor.wait(limit: 15) == nil { left.append("the janitor still runs") }
        if FileManager.default.fileExists(atPath: folder) { left.append("the folder \(folder)") }
        return left
    }

    /// Processes and mounts that name our folder.
    private func leftovers() -> [String] {
        let processes = Processes.all.filter { $0 != janitor.pid && Processes.isAlive($0) && Processes.arguments(of: $0).contains { $0.contains(folder) } }
            .map { "process \($0): \(Processes.arguments(of: $0).joined(separator: " ").prefix(120))" }
        let mounts = String(decoding: FileManager.default.contents(atPath: "/proc/self/mounts") ?? Data(), as: UTF8.self)
            .split(separator: "\n").filter { $0.contains(folder) }.map { "mount \($0)" }
        return processes + mounts
    }

    // MARK: Parts

    func root(_ host: Host) -> String { "\(folder)/\(host.rawValue)" }
    func service(_ host: Host) -> Service { services[host]! }
    func serialLog(_ host: Host, _ domain: String) -> String { root(host) + "/var/log/libvirt/\(domain).serial" }

    private func configure(_ host: Host, _ more: [String]) throws {
        let folder = root(host) + "/etc/shadow-virt"
        let peers = members.filter { $0 != host }.map { "\"\($0.name) \($0.address):16520 qemu+tcp://\($0.address)/system\"" }
        let text = """
            host_name = "\(host.name)"
            listen = "\(host.address):16520"
            peers = [ \(peers.joined(separator: ", ")) ]
            \(more.joined(separator: "\n"))

            """
        try text.write(toFile: folder + "/shadow-virt.conf", atomically: true, encoding: .utf8)
        try writeSecret(host, Self.secret)
    }

    /// A host loses power: its service, its guests, its libvirtd, its cable.
    func crash(_ host: Host) throws {
        service(host).unplug()
        try hosts("crash", host.rawValue)
    }

    /// It comes back, and its service with it.
    func boot(_ host: Host) throws {
        try hosts("boot", host.rawValue)
        try service(host).start()
        try waitForService(host)
    }

    func writeSecret(_ host: Host, _ secret: String) throws {
        let path = root(host) + "/etc/shadow-virt/secret"
        try (secret + "\n").write(toFile: path, atomically: true, encoding: .utf8)
        chmod(path, 0o600)
    }

    private func up(_ count: Int) throws {
        let result = try runCommand(["env", "HOSTS=\(count)", Self.script, "up", folder], limit: 60)
        try require(result.succeeded, "hosts.sh up: \(result.summary)")
    }

    // MARK: Commands

    /// A command of hosts.sh.
    func hosts(_ words: String..., limit: Double = 40) throws {
        let result = try runCommand([Self.script, words[0], folder] + words.dropFirst(), limit: limit)
        try require(result.succeeded, "hosts.sh \(words.joined(separator: " ")): \(result.summary)")
    }

    func run(_ host: Host, _ words: [String], limit: Double = 30) throws -> CommandResult {
        try runCommand([Self.script, "exec", folder, host.rawValue] + words, limit: limit)
    }

    @discardableResult
    func virsh(_ host: Host, _ words: String..., limit: Double = 30) throws -> CommandResult { try run(host, ["virsh", "-q"] + words, limit: limit) }

    func shadowVirt(_ host: Host, _ words: String..., limit: Double = 60) throws -> CommandResult { try run(host, [Self.binary] + words, limit: limit) }

    /// Where a domain stands, in libvirt's words; nil when it is not defined there.
    func domainState(_ host: Host, _ domain: String) throws -> String? {
        let result = try virsh(host, "domstate", domain, limit: 15)
        if result.succeeded { return result.out.trimmed }
        // Gone before or while it was asked.
        try require(result.err.contains("failed to get domain") || result.err.contains("Domain not found"), "virsh domstate on \(host.name): \(result.summary)")
        return nil
    }

    /// The guest runs, in libvirt's eyes; within an epoch it is `paused` there for a millisecond or two.
    func waitUntilRunning(_ host: Host, _ domain: String) throws {
        try waitUntil("libvirt on \(host.name) has \(domain) running", limit: 3) { try domainState(host, domain) == "running" }
    }

    /// QEMU's process of a domain.
    func qemu(_ host: Host, _ domain: String) -> pid_t? {
        FileManager.default.contents(atPath: root(host) + "/run/libvirt/qemu/\(domain).pid").flatMap { pid_t(String(decoding: $0, as: UTF8.self).trimmed) }
            .flatMap { Processes.isAlive($0) ? $0 : nil }
    }

    /// The answer to a monitor command, as JSON text with sorted keys.
    func monitor(_ host: Host, _ domain: String, _ command: String) throws -> String {
        let result = try virsh(host, "qemu-monitor-command", domain, "{\"execute\":\"\(command)\"}")
        try require(result.succeeded, "\(command): \(result.summary)")
        guard let object = try JSONSerialization.jsonObject(with: Data(result.out.utf8)) as? [String: Any], let answer = object["return"] else {
            throw TestFailure("\(command): \(result.out)")
        }
        return String(decoding: try JSONSerialization.data(withJSONObject: answer, options: [.sortedKeys]), as: UTF8.self)
    }

    // MARK: The service

    func waitForService(_ host: Host) throws {
        try waitUntil("The service on \(host.name) answers (\(service(host).logText.suffix(400)))", limit: 20) { try shadowVirt(host, "status").succeeded }
    }

    /// What a host says about a domain; nil when it knows nothing of it.
    func status(_ host: Host, _ domain: String) throws -> Status? {
        let result = try shadowVirt(host, "status", "--format", "json", limit: 15)
        guard result.succeeded else { throw TestFailure("status on \(host.name): \(result.summary)") }
        let report = try JSONDecoder().decode(StatusReport.self, from: Data(result.out.utf8))
        return report.domains.first { $0.domain == domain }
    }

    /// Waits for a state; a service that is not there at the moment is asked again.
    @discardableResult
    func waitForState(_ host: Host, _ domain: String, _ states: Set<String>, limit: Double) throws -> Double {
        var seen = "nothing"
        return try waitUntil("\(domain) on \(host.name) is \(states.sorted().joined(separator: " or ")) (last seen: \(seen))", limit: limit) {
            do {
                guard let status = try status(host, domain) else {
                    seen = "unknown there"
                    return false
                }
                seen = "\(status.state) \(status.reason)"
                return states.contains(status.state)
            } catch {
                seen = "\(error)"
                return false
            }
        }
    }
}

/// The published keys of `status --format json` that tests look at.
struct StatusReport: Decodable {
    var schema: Int
    var host: String
    var domains: [Status]
}

struct Status: Decodable {
    var domain: String
    var role: String
    var peer: String
    var engine: String
    var engineReason: String?
    var state: String
    var reason: String
    var epoch: Int
    var committed: Int
    var intervalMs: Double
    var pauseMsMedian: Double
    var epochsPerSecond: Double
    var disks: [Disk]?
    var shadows: [Shadow]?
    var bytesSent: Int?
    var diskBytesSent: Int?
    var diskWrites: Int?

    struct Shadow: Decodable {
        var peer: String
        var state: String
        var reason: String
        var committed: Int
        var lagEpochs: Int
        var rpoMs: Double?

        enum CodingKeys: String, CodingKey {
            case peer, state, reason
            case committed = "committed_epoch"
            case lagEpochs = "lag_epochs"
            case rpoMs = "rpo_ms"
        }
    }

    struct Disk: Decodable {
        var target: String
        var replica: String?
        var state: String
    }

    enum CodingKeys: String, CodingKey {
        case domain, role, peer, engine, state, reason, epoch, disks, shadows
        case engineReason = "engine_reason"
        case bytesSent = "bytes_sent"
        case diskBytesSent = "disk_bytes_sent"
        case diskWrites = "disk_writes"
        case committed = "committed_epoch"
        case intervalMs = "interval_ms"
        case pauseMsMedian = "pause_ms_median"
        case epochsPerSecond = "epochs_per_second"
    }
}
