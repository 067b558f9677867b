import Glibc
import XCTest

/// Other people's commands on the shadow's domain: the guest itself is not touched, and never runs a second time.
final class ShadowCommandTests: HostsTestCase {
    func testDestroy() throws { try onShadow(["destroy", "ledger"]) }

    func testQEMUKilled() throws {
        let guest = try protectedGuest()
        try guest.waitUntilWholeAgain()
        let shadow = try XCTUnwrap(try hosts.qemu(guest.home.other, guest.name))
        let mark = guest.serial.mark
        kill(shadow, SIGKILL)
        try goesOn(guest, since: mark)
    }

    /// The shadow's QEMU answers nobody any more, and its session ends: libvirt would wait for its answer for ever.
    func testQEMUStopped() throws {
        let guest = try protectedGuest()
        try guest.waitUntilWholeAgain()
        let shadow = try XCTUnwrap(try hosts.qemu(guest.home.other, guest.name))
        let mark = guest.serial.mark
        kill(shadow, SIGSTOP)
        try hosts.service(guest.home).workers.forEach { kill($0, SIGKILL) }
        try waitUntil("it is made anew", limit: 30) { try hosts.qemu(guest.home.other, guest.name).map { $0 != shadow } ?? false }
        try goesOn(guest, since: mark)
    }

    func testResume() throws { try onShadow(["resume", "ledger"]) }
    func testReset() throws { try onShadow(["reset", "ledger"]) }
    func testSave() throws { try onShadow(["save", "ledger", "/var/lib/libvirt/images/shadow.save"]) }
    func testUndefine() throws { try onShadow(["undefine", "ledger"]) }

    private func onShadow(_ words: [String]) throws {
        let guest = try protectedGuest()
        try guest.waitUntilWholeAgain()
        let mark = guest.serial.mark
        let result = try hosts.run(guest.home.other, ["virsh", "-q"] + words, limit: 20)
        print("virsh \(words.joined(separator: " ")) on the shadow: \(result.summary)")
        try goesOn(guest, since: mark)
    }

    /// The guest hardly notices, protection is there again soon, and works.
    private func goesOn(_ guest: LedgerGuest, since mark: Int) throws {
        usleep(1_000_000)
        try guest.waitUntilWholeAgain(limit: 20)
        XCTAssertLessThan(guest.serial.largestGap(since: mark), 1)
        try guest.checkNeverTwice()
        try guest.swap()
        try guest.waitForTicks(100)
        try guest.checkBooks()
        try guest.checkNeverTwice()
        try guest.protect()
        try guest.waitUntilWholeAgain()
    }
}
