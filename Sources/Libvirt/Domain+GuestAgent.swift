import CLibvirt

extension Domain {
    /// Sends a command to the agent inside the guest and returns its reply as JSON (`virDomainQemuAgentCommand`). The domain is not marked as tainted by
    /// libvirt 9, and no job of the hypervisor's waits for it, but other agent commands do.
    ///
    /// - Parameter seconds: to wait for the reply, 1...3600.
    /// - Throws: `agentUnresponsive` when no agent answers, `operationInvalid` when the guest does not run at this moment.
    public func agentJSON(_ json: String, seconds: Int32) throws(LibvirtError) -> String {
        try call("virDomainQemuAgentCommand") { owned(virDomainQemuAgentCommand($0, json, max(1, seconds), 0)) }
    }
}

/// What is said to a guest's agent and what it answers (QEMU `docs/interop/qemu-ga-ref`). Who answers may be anybody inside the guest: nothing of it is believed to be
/// of a certain shape or size.
public enum AgentWire {
    /// Bytes of an answer that are looked at; libvirt itself passes on 4 MiB.
    public static let mostBytes = 1 << 20

    public static func request(_ command: String, _ arguments: [String: JSONValue] = [:]) throws -> String {
        guard !arguments.isEmpty else { return try JSONCoding.encode(["execute": command]) }
        return try JSONCoding.encode(MonitorWire.Request(execute: command, arguments: arguments))
    }

    /// - Throws: `MonitorError` when the agent refuses, `AgentReplyTooLong`, `DecodingError`.
    public static func answer<Answer: Decodable>(_ type: Answer.Type, from reply: String, command: String) throws -> Answer {
        guard reply.utf8.count <= mostBytes else { throw AgentReplyTooLong(command: command, bytes: reply.utf8.count) }
        return try MonitorWire.answer(type, from: reply, command: command)
    }
}

/// The agent answered with more than anybody asked for.
public struct AgentReplyTooLong: Error, CustomStringConvertible, Sendable {
    public let command: String
    public let bytes: Int
    public var description: String { "The guest agent's answer to \(command) has \(bytes) bytes, more than the \(AgentWire.mostBytes) that are looked at" }
}
