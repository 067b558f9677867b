import ControlProtocol
import Foundation
import XCTest
@testable import Libvirt
@testable import Orchestration

/// What the keeper makes of what it hears, before it acts on anything.
final class PolicyKeeperTests: XCTestCase {
    private let uuid = UUID().uuidString.lowercased()

    private func call(_ operation: HookCall.Operation) -> HookCall {
        HookCall(domain: "web1", operation: operation, subOperation: "end", extra: "-", xml: "<domain><name>web1</name><uuid>\(uuid)</uuid></domain>")
    }

    /// Each call of the hook comes on a connection of its own: that of the end may be overtaken by the next start.
    func testALateCallAboutTheEndTakesNothingAway() {
        let keeper = PolicyKeeper()
        XCTAssertFalse(keeper.isKnown(uuid))
        keeper.note(call(.started))
        XCTAssertTrue(keeper.isKnown(uuid))
        keeper.note(call(.stopped))
        keeper.note(call(.release))
        XCTAssertTrue(keeper.isKnown(uuid))
        // Libvirt's events keep their order.
        keeper.domainStopped(uuid)
        XCTAssertFalse(keeper.isKnown(uuid))
    }
}
