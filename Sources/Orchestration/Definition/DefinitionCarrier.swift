import Foundation
import Libvirt
import Platform

/// A domain's persistent definition and whether it starts with its host, as the other host is to keep them.
struct CarriedDefinition: Codable, Sendable, Equatable {
    var xml: String
    var autostart: Bool

    /// Nil for a transient domain.
    static func read(_ handle: Domain) throws -> CarriedDefinition? {
        guard try handle.isPersistent() else { return nil }
        return CarriedDefinition(xml: try DomainDefinition(xml: handle.xml(flags: [.inactive, .secure])).persistentXML(), autostart: try handle.autostart())
    }
}

/// Keeps the persistent definition at the peer up to date: when this host dies, nobody else can tell it there.
final class DefinitionCarrier: @unchecked Sendable {
    /// No event tells of every change (autostart, `virsh metadata --config`), so it is looked at this often.
    private static let everyMilliseconds = 5000.0

    private var sent: CarriedDefinition?
    private var due = MonotonicTime.now

    /// What `prepare` carried over.
    func noteSent(_ definition: CarriedDefinition?) {
        sent = definition
        due = MonotonicTime.now.adding(milliseconds: Self.everyMilliseconds)
    }

    /// Calls `send` when the definition is another one than what the peer has; what fails is tried again the next time.
    func refresh(_ domain: LocalDomain, send: (CarriedDefinition) throws -> Void) {
        guard due <= .now else { return }
        due = MonotonicTime.now.adding(milliseconds: Self.everyMilliseconds)
        do {
            guard let current = try CarriedDefinition.read(domain.handle()), current != sent else { return }
            try send(current)
            sent = current
        } catch {
            Log.debug("\(domain.name): its persistent definition was not carried over: \(error)")
        }
    }
}
