import Foundation
import XCTest

/// What belongs to a guest and is not its memory: definition, firmware variables, TPM, address on the network.
final class CarriedTests: DefinitionTestCase {
    private func assertRefused(_ result: CommandResult, _ parts: String..., file: StaticString = #filePath, line: UInt = #line) {
        XCTAssertEqual(result.status, 1, result.summary, file: file, line: line)
        for part in parts { XCTAssertTrue(result.err.contains(part), "'\(part)' is not in: \(result.summary)", file: file, line: line) }
    }

    // MARK: Definition

    /// The primary's host dies: the definition is there all the same, as it was changed under protection.
    func testDefinitionOutlivesItsHost() throws {
        let hosts = try hosts
        let described = "<title>A title</title><description>Two words</description><metadata><m:x xmlns:m='urn:m' a='1'/></metadata>"
        let guest = try boot(GuestKind(name: "kept", edits: [("<vcpu>", described + "<vcpu>")]))
        try guest.protect()
        try guest.waitUntilProtected()
        try hosts.virsh(.a, "autostart", guest.name)
        try hosts.virsh(.a, "metadata", guest.name, "--config", "--uri", "urn:n", "--key", "n", "--set", "<y b='2'/>")
        // Changed without an event, so it is looked for.
        try waitUntil("host B is told", limit: 15) { (try? String(contentsOfFile: recordPath(guest), encoding: .utf8))?.contains("urn:n") == true }
        let kept = try dumpXML(.a, guest, "--inactive")
        try hosts.crash(.a)
        let started = try hosts.shadowVirt(.b, "failover", guest.name, "--force")
        XCTAssertTrue(started.succeeded, started.summary)
        try guest.followToOther()
        try waitForDefinition(.b, guest)
        XCTAssertEqual(try dumpXML(.b, guest, "--inactive"), kept)
        XCTAssertTrue(kept.contains("urn:n") && kept.contains("urn:m") && kept.contains("A title"), kept)
        XCTAssertTrue(try hosts.virsh(.b, "dominfo", guest.name).out.contains("Autostart:      enable"))
        // Its next start is an ordinary one.
        try hosts.virsh(.b, "destroy", guest.name)
        let again = try hosts.virsh(.b, "start", guest.name)
        XCTAssertTrue(again.succeeded, again.summary)
        XCTAssertEqual(try hosts.domainState(.b, guest.name), "running")
        XCTAssertFalse(try dumpXML(.b, guest).contains("-incoming"))
        leaveDisorder()
        try renew()
    }

    private func recordPath(_ guest: LedgerGuest) throws -> String {
        let uuid = try hosts.virsh(.a, "domuuid", guest.name).out.trimmed
        return try hosts.root(.b) + "/var/lib/shadow-virt/\(uuid).json"
    }

    /// With disks in the epochs: their paths are all that is different in what is kept.
    func testDefinitionNamesTheReplicas() throws {
        let hosts = try hosts
        let folder = "/var/lib/libvirt/replicas"
        let images = "/var/lib/libvirt/images"
        try FileManager.default.createDirectory(atPath: hosts.root(.b) + folder, withIntermediateDirectories: true)
        try hosts.definePool(.a, "default", images)
        try hosts.definePool(.b, "other", folder)
        let guest = try boot(GuestKind(name: "pooled"))
        guest.hasDisks = true
        let kept = try dumpXML(.a, guest, "--inactive")
        let protected = try guest.tryToProtect(["--pool", "other"])
        try require(protected.succeeded, protected.summary)
        try guest.waitUntilProtected()
        try guest.swap()
        try waitForDefinition(.b, guest)
        let there = try dumpXML(.b, guest, "--inactive")
        XCTAssertTrue(there.contains("<source file='\(folder)/"), there)
        let differences = there.split(separator: "\n").filter { !kept.contains($0) }
        XCTAssertEqual(differences.map { $0.trimmingCharacters(in: .whitespaces).prefix(14) }, ["<source file='"])
        try hosts.virsh(.b, "destroy", guest.name)
        let again = try hosts.virsh(.b, "start", guest.name)
        XCTAssertTrue(again.succeeded, again.summary)
        leaveDisorder()
        try renew()
    }

    /// The live definition has `-incoming defer` until the guest's QEMU is another one. Everything that starts a QEMU from it works.
    func testSaveAndRestoreOfAShadow() throws {
        let guest = try boot(GuestKind(name: "saved"))
        try guest.protect()
        try guest.swap()
        try waitForDefinition(.b, guest)
        let saved = try hosts.virsh(.b, "managedsave", guest.name)
        XCTAssertTrue(saved.succeeded, saved.summary)
        let started = try hosts.virsh(.b, "start", guest.name)
        XCTAssertTrue(started.succeeded, started.summary)
        try guest.waitForTicks(50, limit: 10)
        try guest.checkBooks()
    }

    /// What was plugged in since the boot goes over with the guest, and its next start is without it, as it would have been here.
    func testHotPluggedDevices() throws {
        let hosts = try hosts
        let guest = try boot(GuestKind(name: "plugged"))
        for host in Host.allCases { try Data(count: 1 << 20).write(to: URL(fileURLWithPath: hosts.root(host) + "/var/lib/libvirt/images/more.img")) }
        let attached = try hosts.virsh(.a, "attach-disk", guest.name, "/var/lib/libvirt/images/more.img", "vdc", "--subdriver", "raw", "--live")
        try require(attached.succeeded, attached.summary)
        let plugged = try hosts.virsh(.a, "attach-interface", guest.name, "bridge", "br0", "--model", "virtio", "--mac", "52:54:00:aa:00:07", "--live")
        try require(plugged.succeeded, plugged.summary)
        let live = try Visible(dumpXML(.a, guest)), kept = try dumpXML(.a, guest, "--inactive")
        try guest.protect()
        try guest.swap()
        try guest.waitForTicks(50)
        try waitForDefinition(.b, guest)
        let there = try Visible(dumpXML(.b, guest))
        XCTAssertEqual(there, live)
        XCTAssertTrue(there.lines.contains { $0.contains("vdc") } && there.lines.contains { $0.contains("52:54:00:aa:00:07") }, "\(there)")
        XCTAssertEqual(try dumpXML(.b, guest, "--inactive"), kept)
        XCTAssertFalse(kept.contains("vdc"))
        try guest.checkBooks()
    }

    func testSnapshotsAndSavedStatesAreRefused() throws {
        let hosts = try hosts
        let guest = try boot(GuestKind(name: "snapped"))
        let saved = hosts.root(.b) + "/var/lib/libvirt/qemu/save/\(guest.name).save"
        try Data("old".utf8).write(to: URL(fileURLWithPath: saved))
        assertRefused(try guest.tryToProtect(), "keeps a saved state", "rm /var/lib/libvirt/qemu/save/\(guest.name).save")
        unlink(saved)
        let made = try hosts.virsh(.a, "snapshot-create-as", guest.name, "one", "--disk-only", "--diskspec", "vda,file=/var/lib/libvirt/images/overlay.qcow2")
        try require(made.succeeded, made.summary)
        assertRefused(try guest.tryToProtect(), "has 1 snapshots", "--metadata")
        try hosts.virsh(.a, "snapshot-delete", guest.name, "one", "--metadata")
        XCTAssertTrue(guest.isTicking)
        try hosts.assertNoTraces(of: guest.name)
    }

    /// The other host's QEMU has a ROM of another size, so it could not load the guest's memory: known when protection begins.
    func testMemoryThatWouldNotLoad() throws {
        let hosts = try hosts
        let rom = "/var/lib/libvirt/images/nic.rom"
        for (host, size) in [(Host.a, 64 << 10), (.b, 256 << 10)] { try Data(count: size).write(to: URL(fileURLWithPath: hosts.root(host) + rom)) }
        let guest = try boot(GuestKind(name: "rom", devices: "<interface type='bridge'><source bridge='br0'/><model type='virtio'/><rom file='\(rom)'/></interface>"))
        let refused = try guest.tryToProtect()
        assertRefused(refused, "virtio-net-pci.rom has 65536 bytes in the primary's QEMU and 262144 in the shadow's")
        XCTAssertLessThan(refused.seconds, 20)
        XCTAssertTrue(guest.isTicking)
        try hosts.assertNoTraces(of: guest.name)
        try Data(count: 64 << 10).write(to: URL(fileURLWithPath: hosts.root(.b) + rom))
        try guest.protect()
        try guest.swap()
    }

    func testOtherHostLacksWhatItNeeds() throws {
        let hosts = try hosts
        let made = try hosts.run(.a, ["ip", "link", "add", "br7", "type", "bridge"])
        try require(made.succeeded, made.summary)
        let guest = try boot(GuestKind(name: "lonely", devices: "<interface type='bridge'><source bridge='br7'/><model type='e1000'/></interface>"))
        let doctor = try hosts.shadowVirt(.a, "doctor", guest.name, "--to", "hostB")
        XCTAssertEqual(doctor.status, 2)
        XCTAssertTrue(doctor.out.contains("hostB has no bridge br7"), doctor.summary)
        assertRefused(try guest.tryToProtect(), "hostB has no bridge br7")
    }

    // MARK: Memory

    /// A worker that dies is replaced: its successor has all of the guest's blocks.
    func testShadowWorkerWithSeveralBlocksDies() throws {
        let hosts = try hosts
        let guest = try boot(GuestKind(name: "cells", machine: "q35", vcpus: 2, cpu: "<cpu>\(GuestKind.cells)</cpu>"))
        try guest.protect()
        try guest.waitUntilProtected()
        for round in 1...3 {
            for worker in hosts.service(.b).workers { kill(worker, SIGKILL) }
            do { try guest.waitUntilWholeAgain(limit: 15) } catch { throw TestFailure("Round \(round): \(error)") }
        }
        try guest.killQEMU()
        try guest.followToOther()
        try guest.lookAtEverything()
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    func testHugePages() throws {
        let hosts = try hosts
        let pages = HugePageSupply(more: 96)
        defer { pages.putBack() }
        guard pages.isThere else { throw XCTSkip("This machine's kernel gives no 96 huge pages of 2 MiB") }
        for host in Host.allCases {
            let mounted = try hosts.run(host, ["sh", "-c", "mkdir -p /var/lib/libvirt/hugepages && mount -t hugetlbfs hugetlbfs /var/lib/libvirt/hugepages"])
            guard mounted.succeeded else { throw XCTSkip("No hugetlbfs on this machine: \(mounted.summary)") }
            // It looks for the mount when it starts.
            try hosts.hosts("libvirtd-stop", host.rawValue)
            try hosts.hosts("libvirtd-start", host.rawValue)
        }
        let guest = try boot(GuestKind(name: "huge", memoryBacking: "<hugepages/><nosharepages/>"))
        pages.leaveFree(8)
        assertRefused(try guest.tryToProtect(), "has 8 free huge pages of 2048 KiB, the shadow needs 32", "vm.nr_hugepages")
        pages.leaveFree(64)
        try guest.protect()
        try guest.swap()
        try guest.waitForTicks(250, limit: 20)
        try guest.protect()
        try guest.killQEMU()
        try guest.followToOther()
        try guest.lookAtEverything()
        try guest.checkBooks()
        report("huge pages: outage of a swap and a failover \(guest.outages.map { Int($0 * 1000) }) ms")
    }

    // MARK: Firmware and TPM

    func testFirmwareVariables() throws {
        let hosts = try hosts
        let name = "uefi"
        for host in Host.allCases { try FileManager.default.copyItem(atPath: "/usr/share/seabios/bios-256k.bin", toPath: hosts.root(host) + GuestKind.code) }
        defer { for host in Host.allCases { unlink(hosts.root(host) + GuestKind.code) } }
        let files = Dictionary(uniqueKeysWithValues: Host.allCases.map { ($0, URL(fileURLWithPath: hosts.root($0) + GuestKind.variables(name))) })
        for file in files.values { try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true) }
        let content = Data((0..<128 << 10).map { UInt8(truncatingIfNeeded: $0 * 7 + $0 >> 8) }), older = Data(count: 128 << 10)
        try content.write(to: files[.a]!)
        try older.write(to: files[.b]!)
        let guest = try boot(GuestKind(name: name, machine: "q35", edits: [GuestKind.flash(name)]))
        // Another release of the firmware.
        try Data(count: 512 << 10).write(to: URL(fileURLWithPath: hosts.root(.b) + GuestKind.code))
        assertRefused(try guest.tryToProtect(), "has 524288 bytes on hostB and 262144 here", "same release")
        try FileManager.default.removeItem(atPath: hosts.root(.b) + GuestKind.code)
        assertRefused(try guest.tryToProtect(), "hostB has no \(GuestKind.code)")
        try FileManager.default.copyItem(atPath: "/usr/share/seabios/bios-256k.bin", toPath: hosts.root(.b) + GuestKind.code)
        try guest.protect()
        try guest.waitUntilProtected()
        XCTAssertEqual(try Data(contentsOf: files[.b]!), content)
        XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: files[.b]!.path + ".replaced")), older, "What was there is kept")
        // QEMU writes all of its flash when the guest goes on, whatever became of the file.
        let handle = try FileHandle(forWritingTo: files[.b]!)
        try handle.write(contentsOf: older)
        try handle.close()
        try guest.swap()
        try waitUntil("QEMU has written the variables", limit: 5) { try Data(contentsOf: files[.b]!) == content }
        try guest.waitForTicks(50)
        try guest.checkBooks()
    }

    func testEmulatedTPM() throws {
        let hosts = try hosts
        for (tool, package) in [("swtpm", "swtpm"), ("swtpm_setup", "swtpm-tools")] where !TwoHosts.isInstalled(tool) { throw XCTSkip("no \(tool) (Debian: apt install \(package))") }
        let guest = try boot(GuestKind(name: "tpm", machine: "q35", devices: "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"))
        func state(_ host: Host) throws -> Data {
            let folder = hosts.root(host) + "/var/lib/libvirt/swtpm"
            let file = try FileManager.default.subpathsOfDirectory(atPath: folder).first { $0.hasSuffix("tpm2-00.permall") }
            return try Data(contentsOf: URL(fileURLWithPath: folder + "/" + XCTUnwrap(file, "No TPM state on \(host.name)")))
        }
        let mine = try state(.a)
        try guest.protect()
        try guest.waitUntilProtected()
        XCTAssertNotEqual(try state(.b), mine, "A fresh TPM waits there: its seeds are its own")
        let pause = try hosts.status(.a, guest.name)?.pauseMsMedian ?? .nan
        try guest.swap()
        try guest.waitForTicks(50)
        XCTAssertEqual(try state(.b), mine)
        try guest.checkBooks()
        report(String(format: "a guest with an emulated TPM: pause %.1f ms, outage of a swap %.0f ms", pause, (guest.outages.last ?? .nan) * 1000))
    }

    // MARK: Network

    /// The guest never sends anything: what the switches learn comes from QEMU's announcement, for each model of interface.
    func testAddressesAreAnnounced() throws {
        let hosts = try hosts
        let models = ["virtio", "e1000", "rtl8139", "e1000e", "vmxnet3", "ne2k_pci"]
        let macs = models.indices.map { String(format: "52:54:00:aa:01:%02x", $0) }
        let interfaces = zip(models, macs).map { "<interface type='bridge'><mac address='\($1)'/><source bridge='br0'/><model type='\($0)'/><rom enabled='no'/></interface>" }.joined()
        let guest = try boot(GuestKind(name: "nets", machine: "q35", devices: interfaces))
        /// Addresses that this host's bridge looks for behind the cable.
        func behindTheCable(_ host: Host) throws -> Set<String> {
            let lines = try hosts.run(host, ["bridge", "fdb", "show", "br", "br0"]).out.split(separator: "\n").filter { $0.contains("dev cable") }
            return Set(lines.compactMap { $0.split(separator: " ").first.map(String.init) }).intersection(macs)
        }
        try guest.protect()
        try guest.waitUntilProtected()
        XCTAssertEqual(try behindTheCable(.a), [], "A waiting shadow is silent")
        try guest.swap()
        let begin = Clock.seconds
        var learned: [String: Double] = [:]
        _ = try? waitUntil("the addresses are known on host A", limit: 3, every: 0.005) {
            for mac in try behindTheCable(.a) where learned[mac] == nil { learned[mac] = Clock.seconds - begin }
            return learned.count == macs.count
        }
        report("announcement: " + zip(models, macs).map { model, mac in "\(model) " + (learned[mac].map { String(format: "%.0f ms", $0 * 1000) } ?? "never") }.joined(separator: ", ") + " after the guest was heard")
        XCTAssertEqual(Set(learned.keys), Set(macs))
    }
}

/// Huge pages for a test, of a machine that may need its memory for other things.
private final class HugePageSupply {
    private static let path = "/proc/sys/vm/nr_hugepages"
    private let before: Int
    let isThere: Bool

    private static func number(_ path: String) -> Int { (try? String(contentsOfFile: path, encoding: .utf8)).flatMap { Int($0.trimmed) } ?? 0 }
    private static func set(_ count: Int) { try? "\(count)".write(toFile: path, atomically: false, encoding: .utf8) }
    private static var free: Int { number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") }

    init(more: Int) {
        before = Self.number(Self.path)
        Self.set(before + more)
        isThere = Self.free >= more
    }

    func leaveFree(_ count: Int) { Self.set(Self.number(Self.path) - Self.free + count) }
    func putBack() { Self.set(before) }
}
