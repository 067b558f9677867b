import XCTest

/// Other people's libvirt commands on a protected guest: refused, and nothing is harmed.
final class ForeignCommandTests: HostsTestCase {
    func testSave() throws { try refused("save", "ledger", "/var/lib/libvirt/images/ledger.save") }
    func testManagedSave() throws { try refused("managedsave", "ledger") }
    func testDump() throws { try refused("dump", "ledger", "/var/lib/libvirt/images/ledger.dump") }
    func testMemoryDump() throws { try refused("dump", "ledger", "/var/lib/libvirt/images/ledger.dump", "--memory-only") }
    func testLiveDump() throws { try refused("dump", "ledger", "/var/lib/libvirt/images/ledger.dump", "--live") }
    func testSnapshotWithMemory() throws {
        try refused("snapshot-create-as", "ledger", "s1", "--memspec", "file=/var/lib/libvirt/images/ledger.mem,snapshot=external",
                    "--diskspec", "vda,snapshot=external,file=/var/lib/libvirt/images/ledger.s1")
    }
    func testMigrate() throws {
        let guest = try protectedGuest()
        try refused("migrate", "--live", "ledger", "qemu+tcp://\(guest.home.other.address)/system")
    }
    func testAttachDevice() throws {
        let xml = try hosts.folder + "/rng.xml"
        try "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>".write(toFile: xml, atomically: true, encoding: .utf8)
        try refused("attach-device", "ledger", xml)
    }

    private func refused(_ words: String...) throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        let mark = guest.serial.mark
        let before = try XCTUnwrap(try hosts.status(guest.home, guest.name))
        let result = try hosts.run(guest.home, ["virsh", "-q"] + words, limit: 20)
        print("virsh \(words.joined(separator: " ")): \(result.summary)")
        XCTAssertNotNil(result.status, "virsh \(words[0]) hung")
        XCTAssertNotEqual(result.status, 0, "virsh \(words[0]) was not refused")
        try guest.waitForEpochs(25)
        let after = try XCTUnwrap(try hosts.status(guest.home, guest.name))
        XCTAssertEqual(after.state, "protected", after.reason)
        XCTAssertGreaterThan(after.committed, before.committed, "the same protection went on")
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1, "the guest runs on")
        try hosts.waitUntilRunning(guest.home, guest.name)
        try guest.checkNeverTwice()
    }
}

/// After `unprotect` the guest has no trace of us.
final class UnprotectTests: HostsTestCase {
    func testNoTraceAndSaveWorks() throws {
        let guest = try unprotectedGuest()
        let hosts = try hosts
        let home = guest.home
        func settings() throws -> [String] { try ["query-migrate-parameters", "query-migrate-capabilities"].map { try hosts.monitor(home, guest.name, $0) } }
        let before = try settings()
        let xml = try hosts.virsh(home, "dumpxml", "--inactive", guest.name).out
        for _ in 1...2 {
            try guest.protect()
            try guest.waitUntilWholeAgain()
            XCTAssertNotEqual(try settings(), before)
            try guest.unprotect()
            XCTAssertEqual(try settings(), before)
            XCTAssertTrue(try hosts.virsh(home, "blockjob", guest.name, "vda", "--info").out.trimmed.isEmpty, "a block job is left")
            XCTAssertEqual(try hosts.virsh(home, "dumpxml", "--inactive", guest.name).out, xml)
            try hosts.assertNoTraces(of: guest.name)
            XCTAssertNil(try hosts.domainState(home.other, guest.name))
        }
        try guest.waitForTicks(25)
        let file = "/var/lib/libvirt/images/ledger.save"
        let saved = try hosts.virsh(home, "save", guest.name, file, limit: 30)
        XCTAssertEqual(saved.status, 0, saved.summary)
        let restored = try hosts.virsh(home, "restore", file, limit: 30)
        XCTAssertEqual(restored.status, 0, restored.summary)
        try guest.waitForTicks(100)
        try guest.checkBooks()
        try guest.protect()
        try guest.waitUntilWholeAgain()
    }

    /// The same for a guest whose QEMU was a shadow.
    func testNoTraceAfterAHandOver() throws {
        let guest = try protectedGuest()
        let hosts = try hosts
        let home = guest.home
        let xml = try hosts.virsh(home, "dumpxml", "--inactive", guest.name).out
        try guest.swap()
        XCTAssertNil(try hosts.domainState(home, guest.name), "it is defined at one host only")
        XCTAssertEqual(try hosts.virsh(guest.home, "dumpxml", "--inactive", guest.name).out, xml, "the definition is the same there")
        let saved = try hosts.virsh(guest.home, "save", guest.name, "/var/lib/libvirt/images/ledger.save", limit: 30)
        XCTAssertEqual(saved.status, 0, saved.summary)
        let restored = try hosts.virsh(guest.home, "restore", "/var/lib/libvirt/images/ledger.save", limit: 30)
        XCTAssertEqual(restored.status, 0, restored.summary)
        try guest.waitForTicks(100)
        try guest.checkBooks()
    }

    func testNotProtected() throws {
        let guest = try unprotectedGuest()
        let result = try hosts.shadowVirt(guest.home, "unprotect", guest.name)
        XCTAssertEqual(result.status, 1, result.summary)
        XCTAssertTrue(result.err.contains("is not protected"), result.summary)
    }
}
