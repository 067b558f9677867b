import Foundation
import Glibc
import XCTest

/// A Linux guest (Tests/Guests/linux.sh) that keeps records on an ext4 disk and tells each one on its serial port once it is safe.
final class LinuxGuest {
    let hosts: TwoHosts
    let name: String
    let parts: String
    /// Where it runs.
    private(set) var home = Host.a
    /// How long each host's serial log was when the guest was booted.
    private var begins: [Host: Int] = [:]

    init(_ hosts: TwoHosts, name: String = "linux") throws {
        self.hosts = hosts
        self.name = name
        parts = try Self.parts()
    }

    // MARK: What it is made of

    private static let build = Result { () throws -> String in
        let folder = Bundle.main.bundleURL.appendingPathComponent("e2e-linux").path
        let result = try runCommand([TwoHosts.tests + "/Guests/linux.sh", folder], limit: 600)
        if result.status == 2 { throw XCTSkip("No Linux guest: \(result.err.trimmed)") }
        try require(result.succeeded, "The Linux guest cannot be built: \(result.summary)")
        return folder
    }

    /// The folder with kernel, initrd and `records`, built once.
    static func parts() throws -> String { try build.get() }

    /// An ext4 image. Its inode tables are zeroed by the guest, so that a copy sees that as well.
    static func makeDisk(_ path: String, mebibytes: Int = 64) throws {
        unlink(path)
        try require(FileManager.default.createFile(atPath: path, contents: nil) && truncate(path, mebibytes << 20) == 0, "Cannot make \(path)")
        let made = try runCommand(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", path], limit: 60)
        try require(made.succeeded, "mkfs.ext4: \(made.summary)")
    }

    /// Whether the machine's KVM runs Linux: some nested ones only run code without paging. Tried once.
    static func runsUnderKVM(within seconds: Double) throws -> Bool {
        let parts = try parts()
        let log = NSTemporaryDirectory() + "/linux-probe-\(UUID().uuidString)"
        defer { unlink(log) }
        let guest = try ChildProcess(["qemu-system-x86_64", "-accel", "kvm", "-m", "256", "-display", "none", "-no-reboot", "-kernel", parts + "/vmlinuz",
                                      "-initrd", parts + "/initrd", "-append", "console=ttyS0 loglevel=1 panic=1 PROBE=1", "-serial", "file:\(log)"])
        defer {
            guest.signal(SIGKILL)
            _ = guest.wait(limit: 5)
        }
        let end = Clock.seconds + seconds
        while Clock.seconds < end {
            // Asked first whether it ended: what it printed before that counts.
            let ended = guest.poll() != nil
            if let text = FileManager.default.contents(atPath: log), String(decoding: text, as: UTF8.self).contains("BOOT") { return true }
            if ended { return false }
            usleep(50_000)
        }
        return false
    }

    // MARK: Life

    /// Its address on the bridge between the hosts, if it has a network card.
    static let address = "10.77.0.50"

    /// Boots it, writing to `disk`, until it has looked through what is there.
    func boot(on host: Host, type: String, disk: String, withNetwork: Bool = false, limit: Double) throws {
        let xml = hosts.folder + "/\(name).xml"
        let network = withNetwork ? ["BRIDGE=br0", "ADDRESS=\(Self.address)/24"] : []
        let made = try runCommand([TwoHosts.tests + "/Guests/linux-domain.sh", name, "FOLDER=\(parts)", "TYPE=\(type)", "DISK=\(disk)", "RECORDS=1"] + network, limit: 10)
        try require(made.succeeded, made.summary)
        try made.out.write(toFile: xml, atomically: true, encoding: .utf8)
        home = host
        begins = [.a: logSize(.a), .b: logSize(.b)]
        let defined = try hosts.virsh(host, "define", xml)
        try require(defined.succeeded, "virsh define: \(defined.summary)")
        let started = try hosts.virsh(host, "start", name)
        try require(started.succeeded, "virsh start: \(started.summary)")
        try waitUntil("\(name) has looked through its disk (\(lines(host).suffix(3)))", limit: limit) { try verified(on: host) != nil }
    }

    var qemu: pid_t? { hosts.qemu(home, name) }

    func killQEMU() throws {
        let pid = try XCTUnwrap(qemu, "\(name) has no QEMU on \(home.name)")
        kill(pid, SIGKILL)
        try waitUntil("QEMU \(pid) is gone", limit: 10, every: 0.005) { !Processes.isAlive(pid) }
    }

    /// Presses the power button and waits until it has unmounted its disk and is off.
    func shutDown(limit: Double = 30) throws {
        let asked = try hosts.virsh(home, "shutdown", name)
        try require(asked.succeeded, "virsh shutdown: \(asked.summary)")
        try waitUntil("\(name) is off (\(lines(home).suffix(3)))", limit: limit) { lines(home).contains("BYE") && qemu == nil }
    }

    /// Protects it and its disk to the other host, with a disk there that may be what an earlier failover left.
    func protect(interval: String = "20ms", limit: Double = 60) throws {
        begins[home.other] = logSize(home.other)
        let result = try hosts.shadowVirt(home, "protect", name, "--to", home.other.name, "--interval", interval, "--discard-stale", "--no-policy", limit: limit)
        try require(result.succeeded, "protect on \(home.name): \(result.summary); service: \(hosts.service(home).logText.suffix(1500))")
        try hosts.waitForState(home, name, ["protected"], limit: limit)
    }

    /// The image that it runs on, as seen from outside the hosts.
    func image() throws -> String {
        let listed = try hosts.virsh(home, "domblklist", name)
        let path = listed.out.split(separator: "\n").map { $0.split(separator: " ") }.first { $0.first == "vda" }?.last
        return hosts.root(home) + String(try XCTUnwrap(path, "virsh domblklist: \(listed.summary)"))
    }

    /// It goes on at the other host: waits until it is heard there.
    func followToOther(limit: Double) throws {
        let target = home.other
        try waitUntil("\(name) is heard on \(target.name) (\(hosts.service(home).logText.suffix(1500)))", limit: limit) { try tick(on: target) != nil }
        home = target
    }

    // MARK: What it printed since its boot

    private func logSize(_ host: Host) -> Int {
        (try? FileManager.default.attributesOfItem(atPath: hosts.serialLog(host, name))[.size] as? Int) ?? 0
    }

    private func text(_ host: Host) -> Data { FileManager.default.contents(atPath: hosts.serialLog(host, name))?.dropFirst(begins[host] ?? 0) ?? Data() }

    /// Whole lines. Where a host took the guest over in the middle of a line, its first one is the rest of that.
    func lines(_ host: Host) -> [String] {
        text(host).split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).dropLast()
            .map { String(decoding: $0, as: UTF8.self).trimmed }
    }

    /// The numbers in all lines of a kind, `W 17` or `V 0 16`; throws when a line says that something is wrong.
    private func numbers(_ kind: String, _ host: Host) throws -> [[Int]] {
        let lines = lines(host)
        let wrong = lines.filter { $0.hasPrefix("CORRUPT") || $0.contains("Kernel panic") }
        try require(wrong.isEmpty, "\(name) on \(host.name): \(wrong.prefix(5))")
        return lines.filter { $0.hasPrefix(kind + " ") }.map { $0.split(separator: " ").dropFirst().compactMap { Int($0) } }
    }

    /// The numbers after a hand-over without loss: what one host wrote down and then the other is one text, cut anywhere.
    func numbersAcross(_ first: Host, _ second: Host, _ kind: String) throws -> [Int] {
        (text(first) + text(second)).split(separator: UInt8(ascii: "\n")).dropFirst().dropLast()
            .map { String(decoding: $0, as: UTF8.self).trimmed.split(separator: " ") }.filter { $0.first == kind[...] }.compactMap { $0.dropFirst().first.flatMap { Int($0) } }
    }

    /// Records that it told it had written, in order.
    func written(on host: Host) throws -> [Int] { try numbers("W", host).compactMap(\.first) }
    /// The last record that it found at its boot, -1 on an empty disk; nil before it has looked.
    func verified(on host: Host) throws -> Int? { try numbers("V", host).last?.last }
    /// How often it has read all again from the disk.
    func checks(on host: Host) throws -> Int { try numbers("C", host).count }
    func tick(on host: Host) throws -> Int? { try numbers("T", host).last?.first }
    func firstTick(on host: Host) throws -> Int? { try numbers("T", host).first?.first }

    /// Waits until it has written `count` records more.
    func waitForRecords(_ count: Int, limit: Double = 60) throws {
        let before = try written(on: home).count
        try waitUntil("\(name) writes \(count) records (\(lines(home).suffix(3)))", limit: limit) { try written(on: home).count >= before + count }
    }
}

/// Looking at an ext4 image whose guest does not run, without mounting it.
struct LinuxDisk {
    let path: String

    /// The journal is to be replayed: whoever had it mounted did not unmount it.
    func needsRecovery() throws -> Bool {
        let shown = try runCommand(["dumpe2fs", "-h", path], limit: 20)
        try require(shown.succeeded, "dumpe2fs: \(shown.summary)")
        return shown.out.split(separator: "\n").contains { $0.hasPrefix("Filesystem features:") && $0.contains("needs_recovery") }
    }

    /// What every boot after a crash does, and no repairs beyond it: those would hide what is wrong.
    func replayJournal() throws {
        let replayed = try runCommand(["e2fsck", "-p", path], limit: 60)
        try require(replayed.status == 0 || replayed.status == 1, "e2fsck -p \(path): \(replayed.summary)")
    }

    /// Nothing to repair.
    func checkClean() throws {
        let checked = try runCommand(["e2fsck", "-fn", path], limit: 60)
        try require(checked.succeeded, "e2fsck -fn \(path): \(checked.summary)")
    }

    /// The last record in it; all from the first one on are whole.
    func lastRecord() throws -> Int {
        let folder = path + ".files"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let dumped = try runCommand(["debugfs", "-R", "rdump / \(folder)", path], limit: 60)
        try require(dumped.succeeded, "debugfs: \(dumped.summary)")
        let checked = try runCommand([try LinuxGuest.parts() + "/records", "check", folder], limit: 60)
        try require(checked.succeeded, "\(path): \(checked.summary)")
        return try XCTUnwrap(checked.out.split(whereSeparator: { $0 == " " || $0 == "\n" }).last.flatMap { Int($0) }, checked.summary)
    }
}
