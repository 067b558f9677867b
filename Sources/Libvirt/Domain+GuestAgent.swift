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

    /// The same for a command by its name, without arguments.
    public func agent<Answer: Decodable>(_ name: String, seconds: Int32, as type: Answer.Type) throws -> Answer {
        let reply = try agentJSON(try JSONCoding.encode(["execute": name]), seconds: seconds)
        return try MonitorWire.answer(type, from: reply, command: name)
    }
}
