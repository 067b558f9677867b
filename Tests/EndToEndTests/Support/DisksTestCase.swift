import Foundation
import XCTest

/// Tests whose guest writes to a disk that is part of the epochs. Both hosts have the storage pool `default`; only host A has the disk
/// when the guest is booted.
class DisksTestCase: HostsTestCase {
    static let images = "/var/lib/libvirt/images"
    static let diskBytes = 4 << 20

    override func boot(_ guest: LedgerGuest) throws {
        try provideStorage()
        guest.hasDisks = true
        try guest.boot(on: .a)
    }

    /// The pool on both hosts, the guest's disk on host A.
    func provideStorage() throws { try hosts.provideLedgerDisk() }

    /// Another guest in place of the one there is, on fresh hosts: `prepare` readies the disks before it boots.
    func freshDiskGuest(keys: [String] = [], edit: (String) -> String = { $0 }, prepare: () throws -> Void = {}) throws -> LedgerGuest {
        try freshHosts()
        let guest = try newGuest()
        try provideStorage()
        guest.hasDisks = true
        try prepare()
        try guest.boot(on: .a, keys: keys, edit: edit)
        return guest
    }

    // MARK: Looking

    /// A file of a host as this process sees it.
    func image(_ host: Host, _ name: String = "ledger.img") throws -> String { try hosts.root(host) + "\(Self.images)/\(name)" }

    /// Where the replica of a disk lies on the shadow's host.
    func replica(of guest: LedgerGuest, _ target: String = "vda") throws -> String {
        let disks = try hosts.status(guest.home, guest.name)?.disks
        guard let path = disks?.first(where: { $0.target == target })?.replica else { throw TestFailure("No replica of \(target): \(String(describing: disks))") }
        return try hosts.root(guest.home.other) + path
    }

    /// Bytes of disk writes sent since protection began, first copy included.
    func diskBytesSent(_ guest: LedgerGuest) throws -> Int { try hosts.status(guest.home, guest.name)?.diskBytesSent ?? 0 }

    /// Every byte of two raw images. Nobody may be writing; a replica's lock keeps all others away, even readers, so it is passed over.
    func compare(_ first: String, _ second: String) throws -> CommandResult {
        let options = [first, second].map { "driver=raw,file.driver=file,file.locking=off,file.filename=\($0)" }
        return try runCommand(["qemu-img", "compare", "--image-opts"] + options, limit: 30)
    }

    /// The guest runs on, has looked at everything, and its books are in order: memory, disks, and one copy only.
    func assertInOrder(_ guest: LedgerGuest, ticks: Int = 250) throws {
        try guest.waitForTicks(ticks, limit: 20 + Double(ticks) / 20)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    /// Kills the guest's QEMU and follows it to the other host. At most one epoch is lost: one that was captured, and what ran since. On a
    /// host whose disks are slow to flush the interval grows, and may double once more until the kill.
    func failOver(_ guest: LedgerGuest) throws {
        let interval = try hosts.status(guest.home, guest.name)?.intervalMs ?? 20
        let log = try hosts.service(guest.home)
        let mark = log.logMark
        try guest.killQEMU()
        let ticks = Int(4 * interval / 1000 * LedgerGuest.ticksPerSecond)
        try guest.followToOther(mayRepeat: max(LedgerGuest.ticksOfAnEpoch, ticks))
        let lost = try epochs(lostBy: log.logText(since: mark))
        try require(lost <= 1, "\(lost) captured epochs were lost")
    }

    /// "failing over to hostB at epoch 123, 0 captured epochs lost"
    private func epochs(lostBy log: String) throws -> Int {
        let words = log.split(whereSeparator: { $0 == " " || $0 == "," || $0 == "\n" })
        guard let at = words.firstIndex(of: "captured"), at > 0, let count = Int(words[at - 1]) else { throw TestFailure("The service does not tell of its failover: \(log)") }
        return count
    }
}

extension TwoHosts {
    /// The pool on all hosts, the ledger guest's disk on host A only.
    func provideLedgerDisk() throws {
        try defineDefaultPools()
        for host in members { try? FileManager.default.removeItem(atPath: root(host) + "\(DisksTestCase.images)/ledger.img") }
        try FileManager.default.copyItem(atPath: TwoHosts.guests.get() + "/ledger-disk.img", toPath: root(.a) + "\(DisksTestCase.images)/ledger.img")
    }

    /// Libvirt's usual pool, where a host has none of that name.
    func defineDefaultPools() throws {
        for host in members where try !virsh(host, "pool-info", "default").succeeded { try definePool(host, "default", DisksTestCase.images) }
    }

    func definePool(_ host: Host, _ name: String, _ folder: String) throws {
        for words in [["pool-define-as", name, "dir", "--target", folder], ["pool-start", name], ["pool-autostart", name]] {
            let result = try run(host, ["virsh", "-q"] + words)
            try require(result.succeeded, "virsh \(words.joined(separator: " ")) on \(host.name): \(result.summary)")
        }
    }
}
