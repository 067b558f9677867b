import ControlProtocol
import Foundation
import Glibc
import Libvirt
import MigrationStream
import Platform
import Replication

/// A shadow's domain that waits for its guest, as it was created: what a later session has to find unchanged to go on with it.
struct WaitingDomain: Codable, Sendable, Equatable {
    var xml: String
    var processID: Int32
    /// The replicas that its QEMU has open; devices are not among them.
    var images: [String: FileIdentity]
    /// What its memory was filled for; nil: for nothing yet.
    var header: StreamHeader?

    init(xml: String, processID: Int32, images paths: [String]) {
        self.xml = xml
        self.processID = processID
        images = Self.identities(paths)
    }

    private static func identities(_ paths: [String]) -> [String: FileIdentity] {
        Dictionary(paths.compactMap { path in FileIdentity(path: path, withTime: false).map { (path, $0) } }) { first, _ in first }
    }

    /// Whether a shadow of this definition, with these replicas, would be created just like it.
    func fits(xml: String, images paths: [String]) -> Bool { self.xml == xml && images == Self.identities(paths) }

    /// Its QEMU is there, and nobody has fed or resumed it. One that does not answer is of no use either: libvirt would wait for its answer for ever, and
    /// all that is to be prepared on this host behind it.
    func isThere(_ domain: LocalDomain, socket: String) -> Bool {
        guard access(socket, F_OK) == 0 else { return false }
        let answer = Guarded<Bool?>(nil)
        startThread("shadow-there") { [processID] in
            let isThere = (try? domain.processID() == processID && domain.handle().state().state == .paused && domain.monitor(QueryStatus()).status == "inmigrate") == true
            answer.change { $0 = isThere }
        }
        return answer.wait(until: MonotonicTime.now.adding(milliseconds: Self.answerMs)) { $0 } ?? false
    }

    private static let answerMs = 5000.0
}

/// What a shadow leaves to one of a later session of the same guest: its QEMU, with memory that is mostly what the guest still has.
final class ShadowLegacy {
    let waiting: WaitingDomain
    /// Nil: the service that had them ended.
    let memory: GuestMemory?
    private var files: (journal: Int32, state: Int32)?
    let newNVRAM: String?

    init(_ waiting: WaitingDomain, memory: GuestMemory?, files: (journal: Int32, state: Int32)?, newNVRAM: String?) {
        self.waiting = waiting
        self.memory = memory
        self.files = files
        self.newNVRAM = newNVRAM
    }

    deinit {
        if let files { [files.journal, files.state].forEach { close($0) } }
    }

    func takeFiles() -> (journal: Int32, state: Int32)? {
        defer { files = nil }
        return files
    }
}
