import FoundationXML

extension XMLElement {
    /// Sets an attribute, in place of one of that name; the value is escaped when written.
    func set(_ name: String, _ value: String) {
        removeAttribute(forName: name)
        if let node = XMLNode.attribute(withName: name, stringValue: value) as? XMLNode { addAttribute(node) }
    }

    /// Adds a child and returns it.
    @discardableResult
    func add(_ name: String) -> XMLElement {
        let element = XMLElement(name: name)
        addChild(element)
        return element
    }
}
