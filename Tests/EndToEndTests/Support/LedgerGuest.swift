import Foundation
import Glibc

/// The ledger guest on two hosts: where it runs, what it printed there, and whether its books are in order.
final class LedgerGuest {
    static let ticksPerSecond = 250.0

    let hosts: TwoHosts
    let name: String
    let serial: SerialWatcher
    /// Where it runs.
    private(set) var home: Host
    /// Its disks are part of the epochs, so what it finds on them counts.
    var hasDisks = false
    /// Its epochs are those of the engine `periodic`.
    var hasPasses = false
    private struct Stay {
        var host: Host
        /// Part of the host's log, in bytes.
        var from: Int
        var to: Int?
        /// Ticks that may repeat at its beginning: none after a swap.
        var mayRepeat = 0
    }
    /// Its stays on the hosts since it was booted.
    private var stays: [Stay] = []
    /// What a failover may repeat: at most one epoch is lost, so what ran since the one before; 2 x 20 ms at 250 ticks a second.
    static let ticksOfAnEpoch = 10
    /// How long each host's log was when the guest was last there, or when it was booted.
    private var ends: [Host: Int] = [:]
    private var bootMark = 0

    init(_ hosts: TwoHosts, name: String = "ledger", on host: Host = .a) throws {
        self.hosts = hosts
        self.name = name
        home = host
        serial = SerialWatcher(paths: Dictionary(uniqueKeysWithValues: hosts.members.map { ($0, hosts.serialLog($0, name)) }))
    }

    func forget() { serial.stop() }

    // MARK: Life

    /// Defines it and boots it until it ticks. `keys`: more for domain.sh, as "DATA=/var/lib/libvirt/images/data.img"; `edit`: the rest.
    func boot(on host: Host, vcpus: Int = 1, type: String = "kvm", keys: [String] = [], edit: (String) -> String = { $0 }) throws {
        let xml = hosts.folder + "/\(name).xml"
        let made = try runCommand([TwoHosts.tests + "/Guests/domain.sh", name, "VCPUS=\(vcpus)", "TYPE=\(type)",
                                   "DISK=/var/lib/libvirt/images/ledger.img"] + keys, limit: 10)
        try require(made.succeeded, made.summary)
        try edit(made.out).write(toFile: xml, atomically: true, encoding: .utf8)
        let defined = try hosts.virsh(host, "define", xml)
        try require(defined.succeeded, "virsh define: \(defined.summary)")
        try start(on: host)
    }

    /// Starts the domain that is defined on `host`.
    func start(on host: Host) throws {
        home = host
        bootMark = serial.mark
        ends = Dictionary(uniqueKeysWithValues: hosts.members.map { ($0, logSize($0)) })
        stays = [Stay(host: host, from: logSize(host))]
        let started = try hosts.virsh(host, "start", name)
        try require(started.succeeded, "virsh start: \(started.summary)")
        try waitForTicks(5, limit: 60)
    }

    /// No trace of it is left on any host.
    func remove() {
        for host in hosts.members {
            _ = try? hosts.virsh(host, "destroy", name)
            _ = try? hosts.virsh(host, "undefine", "--nvram", name)
        }
    }

    private func logSize(_ host: Host) -> Int {
        (try? FileManager.default.attributesOfItem(atPath: hosts.serialLog(host, name))[.size] as? Int) ?? 0
    }

    /// It goes on at the other host: waits until it is heard there. `mayRepeat`: ticks that may run a second time there.
    func followToOther(mayRepeat: Int = LedgerGuest.ticksOfAnEpoch, limit: Double = 20) throws {
        try follow(to: home.other, mayRepeat: mayRepeat, limit: limit)
    }

    /// It goes on at that host.
    func follow(to target: Host, mayRepeat: Int = LedgerGuest.ticksOfAnEpoch, limit: Double = 20) throws {
        let begin = Clock.seconds
        let before = serial.last(on: target)?.time ?? 0
        try waitUntil("\(name) is heard on \(target.name) (\(hosts.service(home).logText.suffix(1500)))", limit: limit, every: 0.005) {
            (serial.last(on: target)?.time ?? 0) > max(before, begin - 30)
        }
        ends[home] = logSize(home)
        stays[stays.count - 1].to = ends[home]
        stays.append(Stay(host: target, from: ends[target] ?? 0, mayRepeat: mayRepeat))
        home = target
    }

    /// What a stale copy of it printed there since it left counts for nothing.
    func passOver(_ host: Host) { ends[host] = logSize(host) }

    /// Waits until it has ticked `count` times more.
    func waitForTicks(_ count: Int, limit: Double = 5) throws {
        let mark = serial.mark
        try waitUntil("\(name) ticks \(count) times on \(home.name) (\(serial.mark - mark) seen, QEMU: \((try? hosts.monitor(home, name, "query-status")) ?? "no answer"))",
                      limit: limit, every: 0.002) { serial.mark >= mark + count }
    }

    var isTicking: Bool { serial.silence(home) < 0.5 }

    // MARK: Protection

    /// Protects it to the other host and waits until it is.
    func protect(interval: String? = nil, _ more: String...) throws {
        let result = try tryToProtect(["--interval", interval ?? (hasPasses ? "1s" : "20ms")] + (hasPasses ? ["--engine", "periodic", "--discard-stale"] : []) + more)
        try require(result.succeeded, "protect on \(home.name): \(result.summary); service: \(hosts.service(home).logText.suffix(1500))")
    }

    func tryToProtect(_ options: [String] = []) throws -> CommandResult {
        let disks = hasDisks ? [] : ["--without-disks"]
        // These tests say themselves when it is protected; PolicyTests have policies.
        return try hosts.run(home, [TwoHosts.binary, "protect", name, "--to", home.other.name, "--no-policy"] + disks + options, limit: 60)
    }

    func unprotect() throws {
        let result = try hosts.shadowVirt(home, "unprotect", name)
        try require(result.succeeded, "unprotect: \(result.summary)")
    }

    /// Waits until it is protected and epochs arrive at the other host; returns the seconds it took.
    @discardableResult
    func waitUntilProtected(limit: Double = 15) throws -> Double {
        let begin = Clock.seconds
        try hosts.waitForState(home, name, ["protected"], limit: limit)
        try waitForEpochs(3, limit: max(2, limit - (Clock.seconds - begin)))
        return Clock.seconds - begin
    }

    /// Waits for this many new epochs to be committed.
    func waitForEpochs(_ count: Int, limit: Double = 5) throws {
        guard let first = try hosts.status(home, name) else { throw TestFailure("\(name) is not known on \(home.name)") }
        try waitUntil("\(count) more epochs of \(name) than \(first.committed)", limit: limit) {
            guard let now = try hosts.status(home, name) else { return false }
            return now.committed >= first.committed + count || now.committed < first.committed && now.committed >= count
        }
    }

    /// Protected, and the other host says so as well.
    @discardableResult
    func waitUntilWholeAgain(limit: Double = 15) throws -> Double {
        let begin = Clock.seconds
        var left: Double { max(0.5, limit - (Clock.seconds - begin)) }
        try hosts.waitForState(home, name, ["protected"], limit: left)
        try waitUntil("The shadow on \(home.other.name) takes epochs", limit: left) {
            guard let shadow = try? hosts.status(home.other, name) else { return false }
            return shadow.role == "shadow" && shadow.state == "protected" && shadow.committed > 0
        }
        try waitForEpochs(3, limit: left)
        return Clock.seconds - begin
    }

    func killQEMU() throws {
        guard let pid = hosts.qemu(home, name) else { throw TestFailure("\(name) has no QEMU on \(home.name)") }
        kill(pid, SIGKILL)
    }

    func swap() throws {
        let result = try hosts.shadowVirt(home, "swap", name)
        try require(result.succeeded, "swap on \(home.name): \(result.summary); service: \(hosts.service(home).logText.suffix(1500))")
        try followToOther(mayRepeat: 0)
    }

    // MARK: Books

    struct Check: Decodable {
        struct HandOver: Decodable {
            var from: String
            var to: String
            var lastTick: Int
            var firstTick: Int
            var repeatedTicks: Int
            var lostTicks: Int
        }
        struct Problem: Decodable {
            var log: String
            var line: Int
            var problem: String
        }
        var ok: Bool
        var vcpus: Int
        var handOvers: [HandOver]
        var problemCount: Int
        var problems: [Problem]
    }

    /// Runs until it has looked at all of its memory once more (Tests/Support/README.md).
    func lookAtEverything() throws { try waitForTicks(3000, limit: 150) }

    /// Reads all that it printed since its boot: nothing torn, nothing lost, and repeated no more than each hand-over may.
    /// `disks`: those that it writes to are replicated, so what it finds there counts as well.
    @discardableResult
    func checkBooks(mayReboot: Bool = false, disks: Bool? = nil) throws -> Check {
        let disks = disks ?? hasDisks
        let parts = stays.map { "\(hosts.serialLog($0.host, name))@\($0.from)" + ($0.to.map { "-\($0)" } ?? "") }
        let options = (stays.allSatisfy { $0.mayRepeat == 0 } ? ["--swap"] : []) + (mayReboot ? ["--reboot"] : []) + (disks ? [] : ["--ignore-disk"])
        let result = try runCommand([try TwoHosts.guests.get() + "/ledger-tool", "check"] + options + parts, limit: 60)
        try require(result.status == 0 || result.status == 2, "ledger-tool: \(result.summary)")
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let check = try decoder.decode(Check.self, from: Data(result.out.utf8))
        try require(check.ok, "The guest's books: " + check.problems.map { "\($0.log.suffix(40)):\($0.line): \($0.problem)" }.joined(separator: "\n"))
        try require(mayReboot || check.handOvers.count == stays.count - 1, "\(check.handOvers.count) hand-overs in the books, \(stays.count - 1) made")
        for (handOver, stay) in zip(check.handOvers, stays.dropFirst()) where !mayReboot {
            try require(handOver.repeatedTicks <= stay.mayRepeat,
                        "\(handOver.repeatedTicks) ticks repeated where \(stay.mayRepeat) may be: \(handOver.firstTick) after \(handOver.lastTick)")
        }
        return check
    }

    /// Since its boot it changed hosts exactly as often as it was told to: two copies never ran at one time.
    func checkNeverTwice() throws {
        let changes = serial.changes(since: bootMark + 1).count
        try require(changes == stays.count - 1, "\(stays.count - 1) hand-overs, but the guest's output changed hosts \(changes) times: two copies ran")
    }

    /// Seconds of silence at each hand-over since the boot.
    var outages: [Double] { serial.changes(since: bootMark + 1).map(\.outage) }
}
