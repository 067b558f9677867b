import Glibc
import XCTest

/// Hand-overs whose order went out and whose answer never came: the copy that stands still here must not run on by mistake, and one that nobody else has must.
final class DoubtTests: HostsTestCase {
    /// The guest came to the other host, ran there, and ended before its former host could ask: the copy that waited is of an earlier time.
    func testTheGuestCameAndEndedThere() throws {
        let guest = try protectedGuest(on: .a)
        let hosts = try hosts
        try putInDoubt(guest)
        try hosts.hosts("cut")
        // The order as it would have come, of which the cut-off host hears nothing.
        let taken = try hosts.shadowVirt(.b, "failover", guest.name, "--force")
        try require(taken.succeeded, "failover: \(taken.summary)")
        try guest.follow(to: .b, mayRepeat: 40)
        try guest.waitForTicks(100)
        try require(try hosts.virsh(.b, "destroy", guest.name).succeeded, "destroy on hostB")
        try waitUntil("hostB has forgotten it", limit: 10) { try hosts.status(.b, guest.name) == nil }
        // A service that begins anew knows it as well.
        try hosts.service(.b).stop(signal: SIGKILL)
        try hosts.service(.b).start()
        try hosts.waitForService(.b)
        let mark = guest.serial.mark
        try hosts.hosts("join")
        try hosts.service(.a).start()
        try hosts.waitForState(.a, guest.name, ["failed_over"], limit: 20)
        try waitUntil("the copy on hostA is gone", limit: 10) { hosts.qemu(.a, guest.name) == nil }
        XCTAssertEqual(guest.serial.mark, mark, "Nothing of the guest ran any more")
        leaveDisorder()
    }

    /// The host that was ordered is taken out of the configuration: nobody can ask it any more, and the guest stays where it is, which `status` says. Listed again, it
    /// answers, and the guest goes on.
    func testTheOrderedHostIsListedNoMore() throws {
        let guest = try protectedGuest(on: .a)
        let hosts = try hosts
        try putInDoubt(guest)
        let configuration = try unlistPeers()
        try hosts.service(.a).start()
        try hosts.waitForState(.a, guest.name, ["in_doubt"], limit: 20)
        let mark = guest.serial.mark
        let refused = try hosts.shadowVirt(.a, "unprotect", guest.name)
        XCTAssertTrue(refused.err.contains("is in doubt"), refused.summary)
        usleep(1_000_000)
        XCTAssertEqual(guest.serial.mark, mark, "It stands still")
        try listPeersAgain(configuration, guest)
    }

    /// The same while no order went out: the guest runs, held or not, and the service serves.
    func testAProtectedGuestsHostIsListedNoMore() throws {
        let guest = try protectedGuest(on: .a)
        let hosts = try hosts
        try hold(guest)
        let configuration = try unlistPeers()
        try hosts.service(.a).start()
        try guest.waitForTicks(100, limit: 20)
        XCTAssertNil(try hosts.status(.a, guest.name), "Nobody protects it")
        try waitUntil("the service knows what there is", limit: 10) { try hosts.shadowVirt(.a, "unprotect", guest.name, limit: 15).err.contains("is not protected") }
        try listPeersAgain(configuration, guest)
    }

    // MARK: Parts

    /// The guest is protected again, and ran once only.
    private func listPeersAgain(_ configuration: String, _ guest: LedgerGuest) throws {
        let service = try hosts.service(.a)
        try service.stop()
        try configuration.write(toFile: path, atomically: true, encoding: .utf8)
        try service.start()
        try guest.waitUntilWholeAgain(limit: 30)
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    private var path: String { get throws { try hosts.root(.a) + "/etc/shadow-virt/shadow-virt.conf" } }

    /// The service of host A is killed in the middle of a swap: QEMU is stopped as a process.
    private func hold(_ guest: LedgerGuest) throws {
        let pid = try XCTUnwrap(hosts.qemu(.a, guest.name))
        kill(pid, SIGSTOP)
        try hosts.service(.a).stop(signal: SIGKILL)
    }

    /// A moment later: its order to run has gone out.
    private func putInDoubt(_ guest: LedgerGuest) throws {
        try hold(guest)
        let folder = try hosts.root(.a) + "/var/lib/shadow-virt"
        let name = try XCTUnwrap(FileManager.default.contentsOfDirectory(atPath: folder).first { $0.hasSuffix(".json") })
        let record = try String(contentsOfFile: "\(folder)/\(name)", encoding: .utf8)
        let committing = record.replacingOccurrences(of: "\"phase\" : \"protecting\"", with: "\"phase\" : \"committing\"")
        try require(committing != record, "the record: \(record)")
        try committing.write(toFile: "\(folder)/\(name)", atomically: true, encoding: .utf8)
    }

    /// Returns the configuration as it was.
    private func unlistPeers() throws -> String {
        let text = try String(contentsOfFile: path, encoding: .utf8)
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false).map { $0.hasPrefix("peers = ") ? "peers = [ \"hostX 192.0.2.7:16520 qemu+tcp://192.0.2.7/system\" ]" : String($0) }
        try lines.joined(separator: "\n").write(toFile: path, atomically: true, encoding: .utf8)
        return text
    }
}
